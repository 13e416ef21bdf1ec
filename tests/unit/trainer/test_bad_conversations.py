"""Every kind of bad row: an error that names file, row and field, or counted where the job leaves such rows out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer.prepare import prepare
from finetune_trainer.row_errors import RowError
from finetune_trainer.samples import read_samples
from trainer_configs import local_model, local_source, make_config

ASKED = '{"role": "user", "content": "Hi"}'
ANSWERED = '{"role": "assistant", "content": "Hello!"}'
CALLED = '{"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": "{now"}}]}'
BAD_CONVERSATIONS: list[tuple[bytes, str, str]] = [
    (b'{"messages": [{"role": "user"', "malformed JSON", "is not JSON: "),
    (b'{"messages": [{"role": "critic", "content": "Hi"}]}', "unknown role", "messages[0].role is 'critic'"),
    (f'{{"messages": [{ASKED}, {ASKED}, {ANSWERED}]}}'.encode(), "turns out of order", "messages[1]: turn 2 is of"),
    (b'{"messages": [{"role": "user", "content": " "}, %s]}' % ANSWERED.encode(), "empty field or turn",
     "messages[0]: turn 1, of user, is empty"),
    (b'{"messages": []}', "empty field or turn", "holds no turns"),
    (b'{"messages": "' + b"x" * 10_000_000 + b'"}', "row too long",
     "is longer than 8 MiB, in or behind 'messages'"),
    (b'{"messages": "\xff"}', "not UTF-8, or not text", "is not UTF-8 at byte 14, in or behind 'messages'"),
    (b'{"messages": "a\0"}', "not UTF-8, or not text", "holds a NUL byte, in or behind 'messages'"),
    (f'{{"messages": [{ASKED}, {CALLED}]}}'.encode(), "malformed tools or calls",
     "messages[1].tool_calls[0].function.arguments"),
    (b'{"messages": [], "messages": []}', "duplicate keys", "has the key 'messages' twice"),
    (b'{"instruction": "Hi", "output": "Hello!"}', "missing field",
     "'messages' must be a list of turns; its fields are: instruction, output"),
    (b'{"messages": {"role": "user"}}', "field of a wrong type", "'messages' must be a list of turns, not dict"),
    (b'["user", "Hi"]', "not an object", "a row must be an object of openai shape, not list"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason", "problem"),
    BAD_CONVERSATIONS,
    ids=[row[2][:40] for row in BAD_CONVERSATIONS],
)
def test_each_bad_conversation_names_file_row_and_field(tmp_path: Path, line: bytes, reason: str, problem: str) -> None:
    good = f'{{"messages": [{ASKED}, {ANSWERED}]}}\n'.encode()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(good + line + b"\n")
    source = ResolvedSource(uri="file:///rows.jsonl", format="openai")
    samples = read_samples(source, file)
    next(samples)
    with pytest.raises(RowError) as failure:
        next(samples)
    assert str(failure.value).startswith("rows.jsonl:2: ")
    assert problem in str(failure.value)
    assert failure.value.reason == reason


def test_all_bad_conversations_at_once_are_skipped_and_counted(tiny: Path, tmp_path: Path) -> None:
    good = f'{{"messages": [{ASKED}, {ANSWERED}]}}'.encode()
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([good, *(line for line, _, _ in BAD_CONVERSATIONS), good]))
    report = prepare(
        make_config(tmp_path, model=local_model(tiny), sources=[local_source(file, format="openai")], on_error="skip")
    )
    assert report.dataset is not None
    assert report.dataset.samples == 2
    counted = {row.reason: row.count for row in report.dataset.dropped}
    assert counted == dict(Counter(reason for _, reason, _ in BAD_CONVERSATIONS))
