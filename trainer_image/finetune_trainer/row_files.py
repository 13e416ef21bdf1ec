"""Files of rows: JSON lines, a JSON array, CSV, Parquet and Arrow. All are streamed, from a disk or from elsewhere;
memory holds a row, or a batch of a table's.

Lines come unparsed, so that whoever shares work out can share out their parsing too.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet
from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.json_array import array_items
from finetune_trainer.row_errors import CELLS, DUPLICATE, NOT_JSON, NOT_TEXT, TOO_LONG_ROW, RowError, invalid
from finetune_trainer.streams import BUFFER_BYTES, StreamedFile

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
"""Names by which files of rows are found in a directory or repository."""
MAX_ROW_BYTES = 8 * 2**20
"""A longer line is no row, but a file without line ends, or a whole set in one line."""
_BATCH_ROWS = 256
_LOOK = 4096
_BOM = b"\xef\xbb\xbf"
_KEY = re.compile(rb'"((?:[^"\\]|\\.){1,64})"\s*:')


@dataclass(frozen=True)
class RawRow:
    """A row as its file has it: the bytes of a line of JSON, a value that is read already, or what is wrong."""

    where: str
    """File and row, for a person."""
    content: Any

    @property
    def size(self) -> int:
        """Bytes, about: what sharing out goes by."""
        return len(self.content) if isinstance(self.content, bytes) else 1024

    def value(self) -> Any:
        """The row, read.

        Raises:
            RowError: it cannot be read.
        """
        if isinstance(self.content, RowError):
            raise self.content
        if isinstance(self.content, bytes):
            return _parsed(self.content, self.where)
        return self.content


def raw_rows(file: Path | StreamedFile) -> Iterator[RawRow]:
    """The rows of ``file``, whose kind its name or its first bytes tell. Lines, items and a table's rows count from 1.

    Raises:
        TrainerError: DATASET_INVALID; the file cannot be read any further.
    """
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _table(file, _parquet_batches(file), "Parquet")
        return
    with file.open("rb") as stream:
        start = stream.peek(_LOOK)[:_LOOK]
        if start.startswith(b"PAR1"):
            yield from _table(file, _parquet_batches(file), "Parquet")
            return
        if name.endswith(".arrow") or start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            batches = _arrow_batches(file) if isinstance(file, Path) else _arrow_stream(stream)
            yield from _table(file, batches, "Arrow")
        elif name.endswith(".csv"):
            yield from _csv(file, stream)
        elif start.removeprefix(_BOM).lstrip().startswith(b"["):
            for number, item in array_items(file.name, stream, MAX_ROW_BYTES):
                yield RawRow(f"{file.name}[{number}]", item)
        else:
            yield from _lines(file, stream)
        if not isinstance(file, Path):
            while stream.read(BUFFER_BYTES):  # what is behind a table's end belongs to its hash
                pass


def _lines(file: Path | StreamedFile, stream: IO[bytes]) -> Iterator[RawRow]:
    for where, line in _bounded(file, stream):
        if isinstance(line, RowError) or line.strip():
            yield RawRow(where, line)


def _bounded(file: Path | StreamedFile, stream: IO[bytes]) -> Iterator[tuple[str, bytes | RowError]]:
    """Lines with their place; of one that is too long only that it is, since it may be all of a disk."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{file.name}:{number}"
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) <= MAX_ROW_BYTES:
            yield where, line
            continue
        bound = f"is longer than {MAX_ROW_BYTES // 2**20} MiB{_behind(line)}; a line must hold one row"
        while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
            pass
        yield where, invalid(where, bound, TOO_LONG_ROW)


def _parsed(line: bytes, where: str) -> Any:
    text = _text(line, where)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        behind = _behind(text[: error.pos].encode())
        raise invalid(where, f"is not JSON: {error.msg} at column {error.colno}{behind}", NOT_JSON) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise invalid(where, f"is JSON beyond all bounds{_behind(line)}: {error}", NOT_JSON) from error


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(where, f"has the key {twice!r} twice", DUPLICATE)
    return parsed


def _text(data: bytes, where: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        behind = _behind(data[: error.start])
        raise invalid(where, f"is not UTF-8 at byte {error.start}{behind}", NOT_TEXT) from error
    if "\0" in text:
        raise invalid(where, f"holds a NUL byte{_behind(data[: data.index(0)])}", NOT_TEXT)
    return text


def _behind(data: bytes) -> str:
    """The last field that begins in ``data``, for a person."""
    last = None
    for last in _KEY.finditer(data):  # noqa: B007 - the last one is wanted
        pass
    return "" if last is None else f", in or behind {last[1].decode(errors='replace')!r}"


def _csv(file: Path | StreamedFile, stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of text by the header's names; a row's place is the line that it begins in.

    Not pyarrow's reader: it takes the texts ``007`` and ``true`` for a number and a truth.
    """
    line_faults: list[RowError] = []

    def lines() -> Iterator[str]:
        for where, line in _bounded(file, stream):
            try:
                yield _text(line, where) if isinstance(line, bytes) else _raise(line)
            except RowError as error:
                line_faults.append(error)
                yield "\n"  # the reader goes on; what it makes of this row is not used

    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        where = f"{file.name}:{first}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # What follows cannot be told apart from the rest of this cell.
            raise TrainerError(ExitCode.DATASET_INVALID, f"{where}: is not CSV from here on: {error}") from error
        if line_faults:
            yield RawRow(where, line_faults[0])
            line_faults.clear()
        elif not cells:
            continue
        elif header is None:
            header = cells
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise TrainerError(ExitCode.DATASET_INVALID, f"{where}: the header has the column {twice!r} twice")
        elif len(cells) != len(header):
            problem = f"has {len(cells)} cells, where the header has {len(header)}: {', '.join(header)}"
            yield RawRow(where, invalid(where, problem, CELLS))
        else:
            yield RawRow(where, dict(zip(header, cells, strict=True)))


def _raise(error: RowError) -> str:
    raise error


def _table(file: Path | StreamedFile, batches: Iterator[pa.RecordBatch], kind: str) -> Iterator[RawRow]:
    number = 0
    try:
        for batch in batches:
            names = batch.schema.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise TrainerError(ExitCode.DATASET_INVALID, f"{file.name}: has the column {twice!r} twice")
            for row in _rows_of(batch):
                number += 1
                where = f"{file.name}[{number}]"
                yield RawRow(where, _misread(row, where) if isinstance(row, UnicodeDecodeError) else row)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        behind = f"{file.name}[{number + 1}]" if number else file.name
        raise TrainerError(ExitCode.DATASET_INVALID, f"{behind}: is not {kind}: {error}") from error


def _misread(error: UnicodeDecodeError, where: str) -> RowError:
    return invalid(where, f"is not UTF-8: {error.reason} at byte {error.start} of a text", NOT_TEXT)


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error
    else:
        yield from rows


def _parquet_batches(file: Path | StreamedFile) -> Iterator[pa.RecordBatch]:
    # Without pre_buffer a group of rows, which may be all of the file, is read page by page; where it is no map, by
    # buffers.
    local = isinstance(file, Path)
    with (
        contextlib.nullcontext(file) if isinstance(file, Path) else file.random() as place,
        pyarrow.parquet.ParquetFile(
            place, memory_map=local, pre_buffer=False, buffer_size=0 if local else BUFFER_BYTES
        ) as table,
    ):
        yield from table.iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(file: Path) -> Iterator[pa.RecordBatch]:
    """Of a stream, as datasets writes, or of a file with an index."""
    with pa.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            with pa.ipc.open_file(source) as table:
                batches = (table.get_batch(index) for index in range(table.num_record_batches))
                yield from _sliced(batches)
        else:
            source.seek(0)
            with pa.ipc.open_stream(source) as stream:
                yield from _sliced(stream)


def _arrow_stream(source: IO[bytes]) -> Iterator[pa.RecordBatch]:
    """The same, from its start to its end: a file with an index holds a stream behind its first eight bytes."""
    if source.peek(6)[:6] == b"ARROW1":  # type: ignore[attr-defined] # of every buffered reader
        source.read(8)
    with pa.ipc.open_stream(source) as stream:
        yield from _sliced(stream)


def _sliced(batches: Any) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)
