"""The rows of tables: .csv, .tsv, .jsonl, .parquet, JSON lists of objects, and name|||caption lists."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reelwright.data.sources.entries import Dropped, Repeated, load_json, parse_json
from reelwright.types import UsageError

MAX_LINE_BYTES = 16 << 20  # of a row; a longer one is a file of another kind
PARQUET_ROWS = 1024  # read at a time
LOOKED_AHEAD = 100  # rows of JSON whose keys count as the table's columns
VGEN_COLUMNS = ("video", "caption")  # of VGen's lists, which have no header

Row = tuple[str, dict[str, Any]]  # where it stands ("clips.csv line 7"), its cells by column


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: Iterator[Row | Dropped]


def open_table(place: Path, wanted: list[str] | None = None) -> Table:
    """A file's columns and its rows, read as they are asked for. UsageError where it is no table.

    Of a .parquet file only the columns `wanted` are read, where that is given.
    """
    suffix = place.suffix.lower()
    if not place.is_file():
        raise UsageError(f"{place}: not a regular file")
    if suffix == ".parquet":
        return _parquet(place, wanted)
    if suffix in (".csv", ".tsv"):
        return _delimited(place)
    if suffix == ".txt":
        return Table(list(VGEN_COLUMNS), _vgen(place))
    rows = _json_list(place) if suffix == ".json" else _json_lines(place)
    first = list(itertools.islice(rows, LOOKED_AHEAD))
    columns = dict.fromkeys(name for row in first if not isinstance(row, Dropped) for name in row[1])
    return Table(list(columns), itertools.chain(first, rows))


def _delimited(place: Path) -> Table:
    with place.open("rb") as file:
        start = file.read(1 << 16)
    header = start.splitlines()[0] if start else b""
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and b"\x00" in header:
        raise UsageError(f"{place}: not UTF-8 text: it holds zero bytes; save it as UTF-8")
    delimiter = max(",\t;", key=lambda mark: header.count(mark.encode())) if place.suffix.lower() == ".csv" else "\t"
    rows = _delimited_rows(place, encoding, delimiter)
    first = next(rows, None)
    if not isinstance(first, list):
        why = first.reason if isinstance(first, Dropped) else "it is empty"
        raise UsageError(f"{place}: has no header line with the names of its columns: {why}")
    columns = [name.strip() for name in first]
    return Table(columns, _with_columns(rows, columns, place))


def _with_columns(rows: Iterator[Any], columns: list[str], place: Path) -> Iterator[Row | Dropped]:
    for item in rows:
        if isinstance(item, Dropped):
            yield item
            continue
        where, cells = item
        if len(cells) != len(columns):
            yield Dropped(where, f"it has {len(cells)} cells, the header has {len(columns)}")
        else:
            yield where, dict(zip(columns, cells, strict=True))


def _delimited_rows(place: Path, encoding: str, delimiter: str) -> Iterator[Any]:
    """The header's cells, then (where, cells) a row. A byte that is not UTF-8 spoils its own cell alone.

    A quote that is opened and never closed would swallow every row after it: it is an error.
    """
    limit = csv.field_size_limit()
    errors = "surrogateescape" if encoding != "utf-16" else "strict"
    with place.open("r", encoding=encoding, errors=errors, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header_read, line = False, 1
        while True:
            line = reader.line_num + 1
            where = f"{place.name} line {line}"
            try:
                csv.field_size_limit(MAX_LINE_BYTES)  # the csv module has one limit for the whole process
                try:
                    cells = next(reader)
                finally:
                    csv.field_size_limit(limit)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error) or "limit" in str(error):
                    raise UsageError(
                        f"{place}: line {line}: a quote that is opened there is never closed, or a row is longer than "
                        f"{MAX_LINE_BYTES} bytes; a quote inside a quoted cell is written twice"
                    ) from None
                yield Dropped(where, f"not valid CSV: {error}; a quote inside a quoted cell is written twice")
                continue
            except UnicodeDecodeError as error:
                raise UsageError(f"{place}: not UTF-16 text ({error.reason}); save it as UTF-8") from None
            if cells in ([], [""]):
                continue
            yield (where, cells) if header_read else cells
            header_read = True


def _lines(file: IO[bytes], place: Path) -> Iterator[tuple[str, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(
                f"{place}: line {number} is longer than {MAX_LINE_BYTES} bytes; one row a line is expected"
            )
        if line.strip():
            yield f"{place.name} line {number}", line


def _json_lines(place: Path) -> Iterator[Row | Dropped]:
    with place.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"{place}: UTF-16 text; JSON lines are read as UTF-8: save it as UTF-8")
        file.seek(0)
        for where, line in _lines(file, place):
            try:
                value = parse_json(line)
            except ValueError as error:
                yield Dropped(where, str(error))
                continue
            yield _row(where, value)


def _json_list(place: Path) -> Iterator[Row | Dropped]:
    value = load_json(place)
    if not isinstance(value, list) or isinstance(value, Repeated):
        raise UsageError(f"{place}: holds a {type(value).__name__}, a table is a list of objects")
    for number, item in enumerate(value, start=1):
        yield _row(f"{place.name} row {number}", item)


def _row(where: str, value: Any) -> Row | Dropped:
    if isinstance(value, Repeated):
        return Dropped(where, "a name appears twice in its object")
    if not isinstance(value, dict):
        return Dropped(where, f"it is not an object but {json.dumps(value)[:40]}")
    return where, value


def _vgen(place: Path) -> Iterator[Row | Dropped]:
    with place.open("rb") as file:
        for where, line in _lines(file, place):
            name, bar, caption = line.decode("utf-8-sig", "surrogateescape").strip().partition("|||")
            if not bar:
                yield Dropped(where, "it is not of the form name|||caption")
            else:
                yield where, dict(zip(VGEN_COLUMNS, (name, caption), strict=True))


def _parquet(place: Path, wanted: list[str] | None) -> Table:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            f"{place}: reading .parquet needs pyarrow: pip install 'reelwright[parquet]'; "
            "or save the table as .csv or .jsonl"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(place)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{place}: not a Parquet file that can be read: {error}") from None

    def rows() -> Iterator[Row | Dropped]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                for cells in batch.to_pylist():
                    number += 1
                    yield f"{place.name} row {number}", cells
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{place}: damaged after row {number}: {error}") from None

    return Table(list(file.schema_arrow.names), rows())
