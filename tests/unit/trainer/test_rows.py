"""Rows of the three shapes, and what is wrong with one, by file, row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Conversation
from finetune_trainer.samples import read_samples

HI = [("user", "Hi"), ("assistant", "Hello!")]


def read(file: Path, content: bytes | str | list[Any], **fields: Any) -> list[Conversation]:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_samples(ResolvedSource(uri="file:///rows", **fields), file))


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(
    ("shape", "row", "expected"),
    [
        ("alpaca", {"instruction": "Hi", "output": "Hello!"}, HI),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello!", "extra": 1}, HI),
        ("alpaca", {"instruction": "Add", "input": "1 1", "output": "2"}, [("user", "Add\n1 1"), ("assistant", "2")]),
        (
            "alpaca",
            {"system": "S", "history": [["a", "b"]], "instruction": "Hi", "output": "Hello!"},
            [("system", "S"), ("user", "a"), ("assistant", "b"), *HI],
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
            HI,
        ),
        (
            "sharegpt",
            {"system": "S", "conversations": [{"from": "user", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
            [("system", "S"), *HI],
        ),
        (
            "openai",
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
            HI,
        ),
    ],
)
def test_each_shape_becomes_a_conversation(
    tmp_path: Path, shape: Any, row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    (conversation,) = read(tmp_path / "rows.jsonl", [row], format=shape)
    assert said(conversation) == expected


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"question": "Hi", "answer": "Hello!"}
    columns = {"instruction": "question", "output": "answer"}
    (conversation,) = read(tmp_path / "rows.jsonl", [row], columns=columns)
    assert said(conversation) == HI
    with pytest.raises(TrainerError, match=r"rows.jsonl:1: has no column 'reply', which columns.output names"):
        read(tmp_path / "rows.jsonl", [row], columns={"instruction": "question", "output": "reply"})


@pytest.mark.parametrize("start", ["", "\ufeff", " \n"])
def test_arrays_and_lines_with_or_without_a_byte_order_mark(tmp_path: Path, start: str) -> None:
    row = json.dumps({"instruction": "Hi", "output": "Hello!"})
    assert [one.where for one in read(tmp_path / "a.json", f"{start}[{row},\n{row}]")] == ["a.json[1]", "a.json[2]"]
    lines = read(tmp_path / "a.jsonl", f"{start}{row}\r\n\n{row}")
    first = 2 if "\n" in start else 1
    assert [one.where for one in lines] == [f"a.jsonl:{first}", f"a.jsonl:{first + 2}"]


GOOD = '{"instruction": "Hi", "output": "Hello!"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "{broken\n", r"rows\.jsonl:2: is not JSON: .* at column 2"),
        (GOOD + GOOD + "[1]\n", r"rows\.jsonl:3: a row must be an object of alpaca shape, not list"),
        (GOOD + '{"instruction": "Hi"}', r"rows\.jsonl:2: has no 'output'; its fields are: instruction"),
        (GOOD + '{"instruction": "Hi", "output": 3}', r"rows\.jsonl:2: 'output' must be text, not int"),
        (GOOD + '{"instruction": "Hi", "output": " "}', r"rows\.jsonl:2: 'output' is empty"),
        ('{"instruction": "Hi", "output": "a", "output": "b"}', r"rows\.jsonl:1: has the key 'output' twice"),
        ('{"instruction": "Hi", "output": "a", "history": 7}', r"rows\.jsonl:1: 'history' must be a list"),
        ('{"instruction": "Hi", "output": "a", "history": [["b"]]}', r"'history' must be a list of \[question, answer"),
        (
            '{"instruction": "Hi", "output": "\\ud800"}',
            r"rows\.jsonl:1: 'output', assistant's text, holds half of a surrogate",
        ),
        ('{"instruction": "Hi", "output": "a\\u0000"}', r"rows\.jsonl:1: 'output', assistant's text, holds a NUL"),
        (b'{"instruction": "\xff"}', r"rows\.jsonl:1: is not UTF-8 at byte 17, in or behind 'instruction'"),
        (b'{"instruction": "\0"}', r"rows\.jsonl:1: holds a NUL byte, in or behind 'instruction'"),
        ('{"instruction": "Hi", "output": "' + "a" * 10_000_000, r"rows\.jsonl:1: is longer than 8 MiB, .*'output'"),
        ('{"instruction": ' + "[" * 200_000, r"rows\.jsonl:1: is JSON beyond all bounds"),
        ('{"instruction": ' + "9" * 5_000 + "}", r"rows\.jsonl:1: is JSON beyond all bounds"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TrainerError, match=message) as failure:
        read(tmp_path / "rows.jsonl", content)
    assert failure.value.exit_code is ExitCode.DATASET_INVALID


def turn(role: str, content: Any = "text") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        (None, r"'messages' must be a list of turns"),
        ([], "holds no turns"),
        ([turn("system")], "holds no turns"),
        (["text"], r"messages\[0\] must be an object with 'role' and 'content'"),
        ([turn("wizard")], r"messages\[0\]\.role is 'wizard'; known: human, user"),
        ([turn("user"), turn("assistant", None)], r"messages\[1\]\.content must be text, not NoneType"),
        ([turn("user"), turn("user")], "messages\\[1\\]: turn 2 is of user, where assistant's must be"),
        ([turn("assistant")], "turn 1 is of assistant, where user's must be"),
        ([turn("user"), turn("assistant"), turn("system")], "turn 3 is of system"),
        ([turn("user")], "ends with a question that has no answer"),
        ([turn("user", " "), turn("assistant")], "messages\\[0\\]: turn 1, of user, is empty"),
    ],
)
def test_turns_in_disorder_are_named(tmp_path: Path, turns: Any, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        read(tmp_path / "rows.jsonl", [{"messages": turns}], format="openai")


def test_rows_are_streamed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(GOOD + "{broken\n")
    rows = read_samples(ResolvedSource(uri="file:///rows"), file)
    assert said(next(rows)) == HI
    with pytest.raises(TrainerError):
        next(rows)
