"""Files of rows of every kind: what is read of them, where a fault is, and how little memory that takes."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer import json_array, row_files
from finetune_trainer.errors import TrainerError
from finetune_trainer.row_errors import RowError
from finetune_trainer.row_files import raw_rows
from finetune_trainer.samples import read_samples
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = [{"instruction": f"Qüestion {n}?", "output": f"Answer {n},\nwith a line."} for n in range(700)]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write ``rows`` as what the name's ending says."""
    kind = path.suffix
    table = pa.Table.from_pylist(rows)
    if kind == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=300)
    elif kind == ".arrow":
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    elif kind == ".feather":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    elif kind == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as text:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(file: Path, content: bytes | str) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TrainerError) as failure:
        list(read_samples(ResolvedSource(uri=f"file:///{file.name}"), file))
    assert failure.value.exit_code is ExitCode.DATASET_INVALID
    return str(failure.value)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("rows.jsonl", "rows.jsonl:700"),
        ("rows.json", "rows.json[700]"),
        ("rows.csv", "rows.csv:1400"),
        ("rows.parquet", "rows.parquet[700]"),
        ("rows.arrow", "rows.arrow[700]"),
        ("rows.feather", "rows.feather[700]"),
    ],
)
def test_a_file_of_every_kind_gives_its_rows_and_their_places(tmp_path: Path, name: str, last: str) -> None:
    raw = list(raw_rows(write(tmp_path / name)))
    assert [row.value() for row in raw] == ROWS
    assert raw[-1].where == last


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_kind_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path, kind: str) -> None:
    named = write(tmp_path / f"rows.{kind}").rename(tmp_path / "key")
    assert [row.value() for row in raw_rows(named)] == ROWS


def test_conversations_in_tables(tmp_path: Path) -> None:
    """A table has every field in every row, and text alone where it is CSV."""
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    ]
    source = ResolvedSource(uri="file:///rows", format="openai")
    (from_lines,) = read_samples(source, write(tmp_path / "rows.jsonl", rows))
    (from_table,) = read_samples(source, write(tmp_path / "rows.parquet", rows))
    (from_text,) = read_samples(source, write(tmp_path / "rows.csv", [{"messages": json.dumps(rows[0]["messages"])}]))
    assert from_lines.messages == from_table.messages == from_text.messages
    assert from_table.messages[1].calls[0].name == "clock"


def test_labels_in_csv(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.csv", [{"prompt": "a", "completion": "b", "label": text} for text in ("True", "false")]
    )
    samples = read_samples(ResolvedSource(uri="file:///rows", format="kto"), file)
    assert [sample.desirable for sample in samples] == [True, False]


START = '[{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "instruction,output\na,b\nc\n", "a.csv:3: has 1 cells, where the header has 2: instruction, output"),
        ("a.csv", "instruction,output\na,b,c\n", "a.csv:2: has 3 cells, where the header has 2"),
        ("a.csv", "instruction,instruction\na,b\n", "a.csv:1: the header has the column 'instruction' twice"),
        ("a.csv", 'instruction,output\n"a"b,c\n', "a.csv:2: is not CSV from here on: "),
        ("a.csv", "instruction,output\n\"a\nb\",c\n\na,\n", "a.csv:5: 'output' is empty"),
        ("a.csv", b"instruction,output\na,b\n\xff,b\n", "a.csv:3: is not UTF-8 at byte 0"),
        ("a.csv", b"instruction,output\na,\0\n", "a.csv:2: holds a NUL byte"),
        ("a.csv", "instruction\na\n", "a.csv:2: has no 'output'; its fields are: instruction"),
        ("a.parquet", "no table", "a.parquet: is not Parquet: "),
        ("a.arrow", "no table", "a.arrow: is not Arrow: "),
        ("a.json", '[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "a.json[2]: has no 'output'"),
        ("a.json", '[{"instruction": "a", "output": "b"}, {"output": "a", "output": "b"}]',
         "a.json[2]: has the key 'output' twice"),
        ("a.json", '[{"instruction": "a", "output": "b"},\n {"instruction": a}]',
         "a.json[2]: is not JSON: Expecting value at line 2, column 18"),
        ("a.json", f"{START} {{}}]", "a.json[1]: is not JSON: '{', where ']' must be at line 1"),
        ("a.json", START, "a.json[1]: is not JSON: the end of the file, where ']' must be"),
        ("a.json", f"{START}]]", "a.json[1]: is not JSON: ']' behind the array's end at line 1, column 38"),
        ("a.json", START.encode() + b', {"instruction": "\xff"}]', "a.json[2]: is not UTF-8 at byte 55"),
        ("a.json", '[{"instruction": "a", "output": "' + "b" * 10_000_000 + '"}]', "a.json[1]: is longer than 8 MiB"),
        ("a.json", '[{"instruction": "' + "b" * 20_000_000, "a.json[1]: is longer than 8 MiB, or malformed"),
        ("a.json", "[" + "[" * 200_000, "a.json[1]: is JSON beyond all bounds"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, content: bytes | str, problem: str) -> None:
    said = refused(tmp_path / name, content)
    assert said.startswith(problem), said


def test_a_row_that_is_cut_off_names_the_next_one(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(whole[: len(whole) // 2])
    assert "is not Arrow: " in refused(tmp_path / "b.arrow", (tmp_path / "a.arrow").read_bytes())


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"]], names=["output", "output"])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    assert "has the column 'output' twice" in refused(tmp_path / "a.parquet", sink.getvalue())


def test_text_that_is_no_text_in_a_table_names_its_row(tmp_path: Path) -> None:
    buffers = pa.array([b"fine", b"\xff"], type=pa.binary())
    texts = pa.StringArray.from_buffers(2, buffers.buffers()[1], buffers.buffers()[2])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"instruction": texts, "output": ["a", "b"]}), sink)
    assert "a.parquet[2]: is not UTF-8" in refused(tmp_path / "a.parquet", sink.getvalue())


def test_rows_behind_a_bad_one_are_still_there(tmp_path: Path) -> None:
    good = b'{"instruction": "a", "output": "b"}\n'
    bad = [b"{broken\n", b'{"output": "' + b"b" * 10_000_000 + b'"}\n', b"\xff\n", b'{"a": 1, "a": 2}\n']
    file = tmp_path / "a.jsonl"
    file.write_bytes(good.join(bad) + good)
    faults, fine = 0, 0
    for raw in raw_rows(file):
        try:
            raw.value()
            fine += 1
        except RowError:
            faults += 1
    assert (faults, fine) == (4, 4)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(items=st.lists(JSON, max_size=8), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans(),
       chunk=st.integers(1, 40))  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_an_array_read_in_chunks_is_the_array(items: list[Any], indent: Any, ascii_only: bool, chunk: int) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        found = list(json_array.array_items("a.json", io.BytesIO(data), 2**20))
    assert [number for number, _ in found] == list(range(1, len(items) + 1))
    assert [item for _, item in found] == items


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the rows take no more at the peak."""
    monkeypatch.setattr(json_array, "_CHUNK", 2**14)
    peaks = []
    for count in (2_000, 20_000):
        rows = [{"instruction": f"Question {n}?", "output": "word " * 40} for n in range(count)]
        file = write(tmp_path / name, rows)
        del rows
        tracemalloc.start()
        assert sum(1 for _ in raw_rows(file)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_a_batch_of_a_table_is_small(tmp_path: Path) -> None:
    """Whatever the group of rows that it is in."""
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), file)
    with pyarrow.parquet.ParquetFile(file) as table:
        assert table.num_row_groups == 1
    assert max(batch.num_rows for batch in row_files._parquet_batches(file)) <= row_files._BATCH_ROWS
