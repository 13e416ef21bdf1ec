"""Images, videos and sounds as rows write them, and what is wrong with them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer.messages import Conversation, Medium
from finetune_trainer.row_errors import RowError
from finetune_trainer.samples import read_samples
from tiny_media import data_uri

FILE = b"the file itself"
COUNT, FORM, TYPE = "placeholders and media that differ in number", "images, videos or audio", "field of a wrong type"
ANSWER = {"role": "assistant", "content": "Red."}


def read(directory: Path, row: dict[str, Any], format_: str = "alpaca", **source: Any) -> Conversation:
    file = directory / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (sample,) = read_samples(ResolvedSource(uri="file:///rows.jsonl", format=format_, **source), file)
    assert isinstance(sample, Conversation)
    return sample


def asked(sample: Conversation) -> list[str | Medium]:
    return sample.messages[0].pieces


def refused(directory: Path, row: dict[str, Any], format_: str = "alpaca") -> RowError:
    with pytest.raises(RowError) as failure:
        read(directory, row, format_)
    assert str(failure.value).startswith("rows.jsonl:1: ")
    return failure.value


def message(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}, ANSWER]}


def test_placeholders_are_where_the_media_of_a_column_go(tmp_path: Path) -> None:
    row = {"instruction": "Is <image> or\n<image> red?", "output": "b", "images": ["a.png", "dir/b.png"]}
    first, second = Medium("image", "a.png", at=3), Medium("image", "dir/b.png", at=7)
    sample = read(tmp_path, row)
    assert asked(sample) == ["Is ", first, " or\n", second, " red?"]
    assert sample.messages[0].content == "Is  or\n red?"
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Red: <image>."},
             {"from": "human", "value": "<audio>And that?<image>"}, {"from": "gpt", "value": "b"}]  # fmt: skip
    several = {"conversations": turns, "images": ["1", "2"], "audios": ["3"]}
    found = read(tmp_path, several, "sharegpt").messages
    assert [[(medium.kind, medium.content) for medium in one.media] for one in found] == [
        [("image", "1")], [], [("audio", "3"), ("image", "2")], []
    ]  # fmt: skip
    assert found[1].content == "Red: <image>.", "what an answer says is its text"


def test_a_placeholder_is_text_where_a_row_has_no_media(tmp_path: Path) -> None:
    sample = read(tmp_path, {"instruction": "What is <image> in HTML?", "output": "b", "images": []})
    assert asked(sample) == ["What is <image> in HTML?"]


def test_columns_have_other_names_where_the_source_says_so(tmp_path: Path) -> None:
    row = {"instruction": "<image>?", "output": "b", "photo": "a.png"}
    assert asked(read(tmp_path, row, columns={"images": "photo"}))[0] == Medium("image", "a.png")


@pytest.mark.parametrize(
    ("part", "kind", "content"),
    [
        ({"type": "image_url", "image_url": {"url": data_uri(FILE)}}, "image", FILE),
        ({"type": "image_url", "image_url": data_uri(FILE, "image/jpeg")}, "image", FILE),
        ({"type": "image_url", "image_url": {"url": "a.png"}}, "image", "a.png"),
        ({"type": "image", "image": "a.png"}, "image", "a.png"),
        ({"type": "image", "path": "a.png"}, "image", "a.png"),
        ({"type": "input_audio", "input_audio": {"data": base64.b64encode(FILE).decode(), "format": "wav"}}, "audio",
         FILE),
        ({"type": "audio", "audio": "a.wav"}, "audio", "a.wav"),
        ({"type": "audio_url", "audio_url": {"url": "a.wav"}}, "audio", "a.wav"),
        ({"type": "video", "video": "a.mp4"}, "video", "a.mp4"),
    ],
)  # fmt: skip
def test_parts_of_a_message_are_taken_in_the_forms_in_use(
    tmp_path: Path, part: dict[str, Any], kind: str, content: str | bytes
) -> None:
    pieces = asked(read(tmp_path, message({"type": "text", "text": "What?"}, part), "openai"))
    assert pieces[0] == "What?"
    assert isinstance(pieces[1], Medium)
    assert (pieces[1].kind, pieces[1].content, pieces[1].place) == (kind, content, "messages[0].content[1]")


def test_an_image_alone_is_a_question(tmp_path: Path) -> None:
    row = message({"type": "image", "image": "a.png"})
    assert asked(read(tmp_path, row, "openai")) == [Medium("image", "a.png")]


def test_empty_parts_stand_for_the_columns_items(tmp_path: Path) -> None:
    """As trl and datasets write them."""
    row = message({"type": "image", "text": None}, {"type": "text", "text": "or"}, {"type": "image", "text": None})
    pieces = asked(read(tmp_path, row | {"images": ["1.png", "2.png"]}, "openai"))
    assert [piece if isinstance(piece, str) else piece.content for piece in pieces] == ["1.png", "or", "2.png"]


def test_a_table_holds_files_as_bytes(tmp_path: Path) -> None:
    """As datasets writes its feature Image."""
    file = tmp_path / "rows.parquet"
    held = [[{"bytes": FILE, "path": "a.png"}, {"bytes": None, "path": "b.png"}]]
    pyarrow.parquet.write_table(pa.table({"instruction": ["<image><image>?"], "output": ["b"], "images": held}), file)
    (sample,) = read_samples(ResolvedSource(uri="file:///rows.parquet"), file)
    assert isinstance(sample, Conversation)
    assert [medium.content for medium in sample.messages[0].media] == [FILE, "b.png"]


@pytest.mark.parametrize(
    ("row", "problem", "reason"),
    [
        ({"images": ["a", "b"]}, "'images' has 2 items, and the user's turns have 1 placeholders for them: "
         "write <image>",
         COUNT),
        ({"instruction": "Which?", "images": ["a"]}, "'images' has 1 items, and the user's turns have 0 placeholders",
         COUNT),
        ({"instruction": "<video>", "videos": ["a"], "images": ["b"]}, "'images' has 1 items",
         COUNT),
        ({"images": [3]}, "images[0] must be a path, a data: URI or the file's bytes, not int", TYPE),
        ({"images": ["data:image/png,x"]}, "images[0] is a data: URI, but no base64", FORM),
        ({"images": ["data:image/png;base64,%"]}, "images[0] is not base64", FORM),
        ({"images": ["https://host/a.png"]},
         "images[0] is 'https://host/a.png': nothing that a row names is downloaded",
         FORM),
        ({"images": ["a"], "image": "b"}, "has both 'images' and 'image'", FORM),
        ({"images": [{"uri": "a"}]}, "images[0] has neither 'url' nor 'data'; it has: uri", FORM),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_named(tmp_path: Path, row: dict[str, Any], problem: str, reason: str) -> None:
    error = refused(tmp_path, {"instruction": "<image>?", "output": "b"} | row)
    assert problem in str(error)
    assert error.reason == reason


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (message({"type": "image"}, {"type": "text", "text": "?"}),
         "'images' has 0 items, and the user's turns have 1 placeholders"),
        ({"messages": [{"role": "user", "content": "?"},
                       {"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
         "messages[1].content[0] is of type 'image', which only a user's turn can have"),
        (message({"type": "image_url", "image_url": {"detail": "low"}}),
         "messages[0].content[0].image_url has neither 'url' nor 'data'; it has: detail"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    assert problem in str(refused(tmp_path, row, "openai"))


def test_preferences_and_plain_text_are_without_media(tmp_path: Path) -> None:
    pair = {"prompt": "<image>?", "chosen": "a", "rejected": "b", "images": ["a.png"]}
    assert "'images': rows of format preference are text alone" in str(refused(tmp_path, pair, "preference"))
    prompt = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    said = str(refused(tmp_path, {"prompt": prompt, "chosen": "a", "rejected": "b"}, "preference"))
    assert "prompt[0].content[0] is of type 'image'; preferences are between texts alone" in said
    assert "'image': rows of format text are text alone" in str(refused(tmp_path, {"text": "a", "image": "b"}, "text"))
