"""Rows of the stages beside sft, what is wrong with one, and what prepare makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.preference_rows import Pair, Rated
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import IGNORED, Sequence, SequenceSet, load_prepared
from finetune_trainer.samples import PROMPT_TOO_LONG, SAME_ANSWERS, Text, read_samples
from finetune_trainer.tokenizer import load_tokenizer
from stage_data import stage_config
from transformers import AutoTokenizer

HI = [{"role": "user", "content": "Hi"}]
GOOD, BAD = {"role": "assistant", "content": "Hello!"}, {"role": "assistant", "content": "No."}


def read(directory: Path, row: Any, **source: Any) -> Any:
    file = directory / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (sample,) = read_samples(ResolvedSource(uri="file:///rows.jsonl", **source), file)
    return sample


def refused(directory: Path, row: Any, **source: Any) -> str:
    with pytest.raises(TrainerError) as failure:
        read(directory, row, **source)
    assert failure.value.exit_code is ExitCode.DATASET_INVALID
    said = str(failure.value)
    assert said.startswith("rows.jsonl:1: ")
    return said


def said(messages: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}, [("user", "Hi")]),
        ({"prompt": HI, "chosen": [GOOD], "rejected": [BAD]}, [("user", "Hi")]),
        ({"prompt": "Hi", "chosen": [*HI, GOOD], "rejected": [*HI, BAD], "messages": [*HI, GOOD]}, [("user", "Hi")]),
        ({"chosen": [*HI, GOOD], "rejected": [*HI, BAD]}, [("user", "Hi")]),
        (
            {"chosen": [{"role": "system", "content": "S"}, *HI, GOOD],
             "rejected": [{"role": "system", "content": "S"}, *HI, BAD]},
            [("system", "S"), ("user", "Hi")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello!"},
             "rejected": {"from": "gpt", "value": "No."}},
            [("user", "Hi")],
        ),
        ({"conversations": HI, "chosen": GOOD, "rejected": BAD, "system": "S"}, [("system", "S"), ("user", "Hi")]),
        ({"messages": [*HI, BAD, *HI], "chosen": GOOD, "rejected": BAD},
         [("user", "Hi"), ("assistant", "No."), ("user", "Hi")]),
        ({"instruction": "Say", "input": "Hi", "chosen": "Hello!", "rejected": "No."}, [("user", "Say\nHi")]),
        (
            {"instruction": "Hi", "history": [["a", "b"]], "system": "S", "chosen": "Hello!", "rejected": "No."},
            [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Hi")],
        ),
    ],
)  # fmt: skip
def test_each_shape_of_a_preference_becomes_a_pair(tmp_path: Path, row: Any, before: list[tuple[str, str]]) -> None:
    pair = read(tmp_path, row, format="preference")
    assert isinstance(pair, Pair)
    assert said(pair.chosen) == [*before, ("assistant", "Hello!")]
    assert said(pair.rejected) == [*before, ("assistant", "No.")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi", "chosen": "Hello!"}, "has no 'rejected'; its fields are: prompt, chosen"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "No."}, "chosen[0] must be an object with 'role' and 'content'"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "No."}, "'chosen' is empty"),
        ({"prompt": [GOOD], "chosen": "a", "rejected": "b"}, "'prompt' must end with the user's turn"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "'prompt' must end with the user's turn"),
        ({"chosen": "a", "rejected": "b"}, "has no prompt: one of 'prompt', 'conversations'"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "'chosen' and 'rejected' begin with different turns"),
        ({"prompt": HI, "chosen": HI, "rejected": [BAD]}, "'chosen' must be one turn of the assistant"),
        ({"prompt": HI, "chosen": [GOOD, *HI, GOOD], "rejected": BAD}, "not assistant, user, assistant"),
        ({"prompt": HI, "chosen": {"role": "robot", "content": "x"}, "rejected": BAD}, "chosen[0].role is 'robot'"),
        ({"prompt": [*HI, *HI], "chosen": "a", "rejected": "b"}, "turn 2 is of user, where assistant's must be"),
        ("text", "a row must be an object of preference shape, not str"),
    ],
)
def test_a_malformed_preference_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    assert problem in refused(tmp_path, row, format="preference")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*HI, GOOD], "label": True},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], "kto_tag": True},
        {"instruction": "Hi", "output": "Hello!", "kto_tag": True},
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": HI, "completion": [GOOD], "label": True},
    ],
)
def test_each_shape_of_a_labelled_answer_is_read(tmp_path: Path, row: Any) -> None:
    rated = read(tmp_path, row, format="kto")
    assert isinstance(rated, Rated)
    assert said(rated.messages) == [("user", "Hi"), ("assistant", "Hello!")]
    assert rated.desirable is True


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi", "completion": "a"}, "has no 'label' (or 'kto_tag'); its fields are: prompt, completion"),
        ({"prompt": "Hi", "completion": "a", "label": "yes"}, "'label' must be true or false, not 'yes'"),
        ({"prompt": "Hi", "completion": "a", "kto_tag": 1}, "'kto_tag' must be true or false, not 1"),
        ({"prompt": "Hi", "label": True}, "has no 'completion'"),
        ({"answer": "a", "label": True}, "has no conversation: one of 'messages'"),
        ({"messages": HI, "label": True}, "ends with a question that has no answer"),
    ],
)
def test_a_malformed_label_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    assert problem in refused(tmp_path, row, format="kto")


def test_columns_name_the_fields_of_every_format(tmp_path: Path) -> None:
    pair = read(tmp_path, {"q": "Hi", "good": "Hello!", "bad": "No."}, format="preference",
                columns={"prompt": "q", "chosen": "good", "rejected": "bad"})  # fmt: skip
    assert said(pair.rejected) == [("user", "Hi"), ("assistant", "No.")]
    rated = read(tmp_path, {"q": "Hi", "a": "No.", "ok": False}, format="kto",
                 columns={"prompt": "q", "completion": "a", "label": "ok"})  # fmt: skip
    assert rated.desirable is False
    assert read(tmp_path, {"body": "Once."}, format="text", columns={"text": "body"}) == Text("Once.", "rows.jsonl:1")
    assert "has no column 'body'" in refused(tmp_path, {"text": "x"}, format="text", columns={"text": "body"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"body": "x"}, "has no 'text'; its fields are: body"),
        ({"text": ["x"]}, "'text' must be text, not list"),
        ({"text": "\ud800"}, "'text' holds half of a surrogate pair"),
    ],
)
def test_a_malformed_text_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    assert problem in refused(tmp_path, row, format="text")


# -- what prepare makes of them --------------------------------------------------------------------------------


def with_rows(config: TrainerConfig, rows: list[Any], **edits: Any) -> TrainerConfig:
    Path(str(config.sources[0].path)).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return config.model_copy(update=edits)


def halves(pair: Sequence) -> list[tuple[np.ndarray, np.ndarray]]:
    end = int(pair.lengths[0])
    return [(pair.input_ids[:end], pair.labels[:end]), (pair.input_ids[end:], pair.labels[end:])]


def all_of(sequences: SequenceSet) -> list[Sequence]:
    return [sequences[i] for i in range(len(sequences))]


def test_a_pair_is_two_answers_to_one_prompt(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(tmp_path, tiny, "dpo", validation={"fraction": 0.25})
    dataset = prepare(config).dataset
    assert dataset is not None
    assert (dataset.samples, dataset.validation_samples, dataset.sequences, dataset.truncated) == (18, 6, 18, 0)
    prepared = load_prepared(config)
    assert dataset.tokens == sum(len(pair.input_ids) for pair in all_of(prepared.train))
    assert dataset.supervised_tokens == sum(int((p.labels != IGNORED).sum()) for p in all_of(prepared.train))
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    for pair in [*all_of(prepared.train), *all_of(prepared.validation)]:
        assert pair.desirable is None
        (chosen, good), (rejected, bad) = halves(pair)
        asked = [ids[: int(np.flatnonzero(labels != IGNORED)[0])] for ids, labels in ((chosen, good), (rejected, bad))]
        assert np.array_equal(*asked)
        assert "flag" in tokenizer.decode(asked[0])
        assert tokenizer.decode(good[good != IGNORED])[6:].strip()[0].isalpha()
        assert tokenizer.decode(bad[bad != IGNORED])[6:].strip()[0].isdigit()


def test_only_the_last_answer_of_a_pair_is_judged(tmp_path: Path, tiny: Path) -> None:
    row = {"prompt": [*HI, BAD, *HI], "chosen": "Hello!", "rejected": "Go."}
    config = with_rows(stage_config(tmp_path, tiny, "rm", validation={"fraction": 0.0}), [row])
    prepare(config)
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    answers = [tokenizer.decode(labels[labels != IGNORED]) for _, labels in halves(load_prepared(config).train[0])]
    assert answers == ["Hello!<|im_end|>", "Go.<|im_end|>"]


def test_answers_too_long_lose_their_end_and_prompts_too_long_are_dropped(tmp_path: Path, tiny: Path) -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Yes. " * 90, "rejected": "No."},
        {"prompt": "Hi " * 200, "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Hi", "chosen": "x" * 300 + "a", "rejected": "x" * 300 + "b"},
        {"prompt": "Hi", "chosen": "Same.", "rejected": "Same."},
        {"prompt": "Hi", "chosen": "Yes.", "rejected": "No."},
    ]
    config = with_rows(stage_config(tmp_path, tiny, "orpo", validation={"fraction": 0.0}), rows, max_length=100)
    dataset = prepare(config).dataset
    assert dataset is not None
    assert (dataset.samples, dataset.truncated) == (2, 1)
    assert {row.reason: (row.count, row.first) for row in dataset.dropped} == {
        PROMPT_TOO_LONG: (1, "orpo.jsonl:2"),
        f"{SAME_ANSWERS} within maxLength": (1, "orpo.jsonl:3"),
        SAME_ANSWERS: (1, "orpo.jsonl:4"),
    }
    assert sorted(load_prepared(config).train[0].lengths.tolist())[-1] == 100


def test_a_set_without_a_pair_to_compare_is_refused_with_the_reasons(tmp_path: Path, tiny: Path) -> None:
    rows = [{"prompt": "Hi " * 200, "chosen": "Yes.", "rejected": "No."}]
    config = with_rows(stage_config(tmp_path, tiny, "dpo"), rows, max_length=64)
    with pytest.raises(TrainerError, match=r"raise spec.dataset.maxLength, now 64") as failure:
        prepare(config)
    assert failure.value.exit_code is ExitCode.NO_SUPERVISED_TOKENS


def test_labels_are_kept_with_their_answers(tmp_path: Path, tiny: Path) -> None:
    config = stage_config(tmp_path, tiny, "kto", validation={"fraction": 0.25})
    prepare(config)
    prepared = load_prepared(config)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    found = [*all_of(prepared.train), *all_of(prepared.validation)]
    assert {one.desirable for one in found} == {True, False}
    for one in found:
        answer = tokenizer.decode(one.labels[one.labels != IGNORED])
        assert one.desirable is answer[6:].strip()[0].isalpha()


def test_labels_of_one_kind_alone_are_told_of(tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"Hi {n}", "completion": "Yes.", "label": True} for n in range(3)]
    prepare(with_rows(stage_config(tmp_path, tiny, "kto"), rows))
    assert "every answer is desirable" in caplog.text


def test_long_texts_are_cut_and_every_token_is_trained_once(tmp_path: Path, tiny: Path) -> None:
    text = "one two three four five six seven eight nine ten " * 8 + "<|im_end|> is no end."
    config = with_rows(
        stage_config(tmp_path, tiny, "pt", validation={"fraction": 0.0}), [{"text": text}], max_length=32
    )
    dataset = prepare(config).dataset
    assert dataset is not None
    pieces = all_of(load_prepared(config).train)
    assert dataset.samples == dataset.sequences == len(pieces) > 3
    assert (dataset.truncated, dataset.dropped) == (0, [])
    assert all(len(piece.input_ids) == 32 for piece in pieces[:-1])
    assert all(piece.labels[0] == IGNORED and (piece.labels[1:] == piece.input_ids[1:]).all() for piece in pieces)
    whole = np.concatenate([pieces[0].input_ids[:1], *(piece.input_ids[1:] for piece in pieces)])
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    assert tokenizer.decode(whole) == text + "<|im_end|>"
    end = tokenizer.eos_token_id
    assert whole[-1] == end
    assert (whole == end).sum() == 1  # what looks like an end in the text is text
    assert dataset.supervised_tokens == len(whole) - 1


def test_a_text_begins_as_the_tokenizer_begins_it(tmp_path: Path, tiny_base: Path) -> None:
    base = tmp_path / "begins"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    begin = tokenizer.bos_token_id
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": tokenizer.bos_token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            tokenizer.bos_token: {"id": tokenizer.bos_token, "ids": [begin], "tokens": [tokenizer.bos_token]}
        },
    }
    for file in tiny_base.iterdir():
        base.mkdir(exist_ok=True)
        (base / file.name).write_bytes(file.read_bytes())
    (base / "tokenizer.json").write_text(json.dumps(backend))
    for model, begins in ((tiny_base, False), (base, True)):
        directory = tmp_path / str(begins)
        directory.mkdir()
        config = stage_config(directory, model, "pt", validation={"fraction": 0.0})
        prepare(config)
        first = load_prepared(config).train[0].input_ids
        assert bool(first[0] == begin) is begins
        assert first[-1] == tokenizer.eos_token_id


def test_a_base_model_without_a_template_is_pre_trained_and_keeps_none(tmp_path: Path, tiny_base: Path) -> None:
    config = stage_config(tmp_path, tiny_base, "pt")
    prepare(config)
    assert load_prepared(config).chat_template is None


def test_one_text_at_most_is_both_trained_on_and_held_out(tmp_path: Path, tiny: Path) -> None:
    rows = [{"text": f"{letter} " * 120} for letter in "abcdefgh"]
    config = with_rows(stage_config(tmp_path, tiny, "pt", validation={"fraction": 0.4}), rows, max_length=32)
    prepare(config)
    prepared, tokenizer = load_prepared(config), load_tokenizer(tiny, trust_remote_code=False)
    end = int(tokenizer.eos_token_id)
    letters = [
        {letter for one in all_of(part) for letter in tokenizer.decode(one.labels[one.labels > end])} - {" "}
        for part in (prepared.train, prepared.validation)
    ]
    assert len(letters[0] & letters[1]) <= 1
    assert len(letters[1] - letters[0]) >= 1


def test_stages_of_one_kind_of_data_share_it(tmp_path: Path, tiny: Path) -> None:
    digests = {}
    for stage in ("dpo", "orpo", "rm"):
        config = stage_config(tmp_path, tiny, stage)  # type: ignore[arg-type]
        source = config.sources[0].model_copy(update={"path": str(tmp_path / "dpo.jsonl")})
        dataset = prepare(config.model_copy(update={"sources": [source]})).dataset
        assert dataset is not None
        digests[stage] = (dataset.digest, dataset.reused)
    assert [reused for _, reused in digests.values()] == [False, True, True]
    assert len({digest for digest, _ in digests.values()}) == 1


@pytest.mark.parametrize(
    ("stage", "edits", "problem"),
    [
        ("dpo", {"packing": True}, "packing in preference stages"),
        ("kto", {"hyperparameters": {"microBatchSize": 1}}, "set 2 or more"),
        ("rm", {"evaluation": {"prompts": ["Hi"]}}, "writes none"),
        ("rm", {"preference": {}}, "spec.preference"),
        ("orpo", {"hyperparameters": {"neftuneAlpha": 5}}, "neftuneAlpha"),
        ("dpo", {"template": {"trainOnPrompt": True}}, "trainOnPrompt"),
        ("pt", {"template": {"name": "qwen"}}, "without a template"),
        ("pt", {"sources": [{"uri": "file:///x", "path": "x"}]}, "stage pt trains plain text"),
    ],
)
def test_what_a_stage_cannot_do_is_refused(
    tmp_path: Path, tiny: Path, stage: Any, edits: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TrainerError, match=problem) as failure:
        prepare(stage_config(tmp_path, tiny, stage, **edits))
    assert failure.value.exit_code is ExitCode.CONFIG_INVALID
