"""This module reads the rows of a JSONL, JSON, CSV or Parquet file, one after the other.

Each row comes with where it stands in the file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from loramux_runtime.data.columns import ROW_COLUMNS, SPLITS, Unused
from loramux_runtime.data.source import invalid, open_data
from loramux_traces.documents import OnKey, json_items, jsonl_items
from loramux_traces.errors import UsageError, printable
from loramux_traces.files import text_lines, whole_text
from loramux_traces.problems import Problems
from loramux_traces.tables import MAX_COLUMNS, csv_rows

Row = tuple[int, Any]
_SUFFIXES: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_BATCH: Final = 1024


def file_format(path: Path) -> str:
    """Return jsonl, json, csv or parquet, as the name of the file says.

    Raises InvalidInputError for any other name.
    """
    suffix = _suffix(path)
    if suffix not in _SUFFIXES:
        raise invalid(path, f"the name must end with one of {', '.join(_SUFFIXES)} (or give file_format)")
    return _SUFFIXES[suffix]


def format_beside(path: Path, other: Path, given: str) -> str:
    """Return the format of `path`, where that of the file `other` is `given` (or auto).

    A name with an ending of its own that says its format is believed.
    """
    suffix = _suffix(path)
    return _SUFFIXES.get(suffix, given) if given != "auto" and suffix != _suffix(other) else given


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_rows(
    path: Path,
    problems: Problems,
    *,
    format: str = "auto",
    limit: int | None = None,
    unused: Unused | None = None,
) -> Iterator[Row]:
    """Yield (line, row) of the file's first `limit` rows.

    A Parquet file has row numbers for lines. A row is whatever the file holds
    (`parse.RecordReader` judges it). What is no row is noted in `problems` and left out; keys that
    say nothing of the rows beside them are counted in `unused`. Raises InvalidInputError for a file
    that cannot be read at all, UsageError for Parquet without pyarrow.
    """
    kind = file_format(path) if format == "auto" else format
    with open_data(path) as stream:
        if kind == "json":  # which has keys to be looked at behind its rows, too
            text, note = whole_text(stream, problems), _beside(problems, unused or Unused())
            yield from json_items(text, problems, [], rows_key="data", on_key=note, limit=limit)
        else:
            yield from islice(_rows(kind, path, stream, problems), limit)


def _rows(kind: str, path: Path, stream: IO[bytes], problems: Problems) -> Iterator[Row]:
    if kind == "jsonl":
        return jsonl_items(text_lines(stream, problems), problems, [])
    if kind == "csv":
        return _csv(stream, problems)
    return _parquet(path, stream, problems)


def _beside(problems: Problems, unused: Unused) -> OnKey:
    """Return what judges the keys of a JSON file that stand beside its rows."""

    def note(line: int, key: str, value: Any) -> None:
        if isinstance(value, list) or key in SPLITS or key in ROW_COLUMNS:
            said = "is not read: a JSON file is a list of rows, or has it as data"
            problems.add(line, key, value, f"{said}; write this into every row, or into a file of its own")
        else:
            unused.add(f"{key} of the file")

    return note


def _csv(stream: IO[bytes], problems: Problems) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    rows = csv_rows(text_lines(stream, problems), problems, strip=False)
    line, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    before = problems.total
    if len(names) > MAX_COLUMNS:
        problems.add(line, "", f"{len(names)} columns", f"a table may have at most {MAX_COLUMNS} columns")
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not name:
            problems.add(line, "", f"column {number}", "every column needs a name")
        elif name in seen:
            problems.add(line, name, "", "is named twice")
        seen.add(name)
    if problems.total > before:
        return
    for line, cells in rows:
        if len(cells) != len(names):
            problems.add(line, "", f"{len(cells)} cells", f"must have {len(names)} cells, as the header has")
        else:
            # An empty cell is how CSV says "none".
            yield line, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _parquet(path: Path, stream: IO[bytes], problems: Problems) -> Iterator[Row]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow (or give JSON lines)") from error
    number = 0
    try:
        # Read batches, not pandas' whole table: then only one row group at a time is in memory.
        file = parquet.ParquetFile(stream)
        names = file.schema_arrow.names
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice is not None:
            problems.add(0, twice, "", "is named twice")
            return
        # a map is a mapping as JSON has it, not a list of pairs (only newer pyarrows know the word)
        maps = {"maps_as_pydicts": "strict"} if "map<" in str(file.schema_arrow) else {}
        for batch in file.iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist(**maps):
                number += 1
                yield number, row
    except (arrow.ArrowException, ValueError, TypeError, LookupError, OSError, MemoryError, OverflowError) as error:
        said = printable(" ".join(str(error).split()), 200)
        problems.add(number + 1 if number else 0, "", "", f"not a readable Parquet file: {said}")
