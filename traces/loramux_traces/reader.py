"""Read a trace of jobs from CSV, JSON, JSON lines or YAML.

Every bad row is reported before anything runs.

CSV: an optional block of `# ...` lines (the provenance), a line of column names, one job a row;
`.csv.gz` is unpacked. An empty cell means the default. A leading apostrophe before = + - @ in user,
group and dataset (put there by `write_trace` against spreadsheets) is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

from loramux_traces.allowed import FREE_PREFIX, LENGTH_COLUMNS, unknown_column
from loramux_traces.canonical import COLUMNS, REQUIRED, build_trace
from loramux_traces.documents import as_row, json_items, jsonl_items, yaml_items
from loramux_traces.errors import InvalidInputError, Problem, UsageError, printable
from loramux_traces.files import MAX_DOCUMENT, MAX_TABLE, MAX_YAML, open_input, real_path, text_lines, whole_text
from loramux_traces.job import Trace
from loramux_traces.parse_rows import Check, JobRows
from loramux_traces.problems import Problems
from loramux_traces.tables import MAX_COLUMNS, csv_rows, split_comments

#: Called every few thousand rows with the number of rows read so far.
OnProgress = Callable[[int], None]
FORMATS: Final = ("csv", "json", "jsonl", "yaml")
_SUFFIXES: Final = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}
_PROGRESS_EVERY: Final = 5000
#: Cells of these columns may carry the spreadsheet guard.
GUARDED: Final = frozenset(("user", "group", "dataset"))
_GUARD: Final = re.compile(r"'+[=+\-@＝＋－＠]")
#: Values of these columns repeat, so that one object serves all rows (a million rows take a third
#: less memory).
_REPEATED: Final = frozenset(("base_model", "method", "user", "group", "dataset", "length_dist", "ref_gpu"))
_REPEATED_FLOATS: Final = frozenset(("seq_len", "seq_len_p95", "lr", "alpha", "dropout", "epochs"))
#: Columns that give away an original trace, which the importers read.
_FOREIGN: Final = {
    "philly-table": {"timestamp", "duration", "num_gpus"},
    "helios": {"job_id", "vc", "gpu_num", "submit_time"},
    "acme": {"job_id", "type", "gpu_num", "submit_time"},
    "alibaba-gpu2023": {"name", "num_gpu", "gpu_milli"},
}


def read_trace(
    path: Path | str,
    *,
    format: str | None = None,
    name: str | None = None,
    progress: OnProgress | None = None,
    check: Check | None = None,
) -> Trace:
    """Return the jobs of a file, validated and sorted by (submit_s, job_id).

    `path` may be `-` for standard input (CSV unless `format` says otherwise). Raises
    InvalidInputError that lists every bad row up to 50, with file, line, column, value and what is
    allowed; UsageError for an unknown `format`. `check` is asked about every valid row
    (`loramux_profiles.checked` knows models, devices and lengths).
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"format {format!r} is unknown; known: {', '.join(FORMATS)}")
    kind = format or _format_of(path)
    most = {"json": MAX_DOCUMENT, "yaml": MAX_YAML}.get(kind, MAX_TABLE)
    with open_input(path, most, f"a {kind} trace") as (label, stream):
        problems = Problems(label)
        provenance: list[str] = []
        rows = JobRows(problems, check)
        for count, (line, row) in enumerate(_items(kind, stream, problems, provenance), start=1):
            rows.add(line, row)
            if progress is not None and count % _PROGRESS_EVERY == 0:
                progress(count)
    jobs = rows.finish()
    if not jobs and not problems.total:
        problems.add(0, "", "", "has no jobs: at least one row is needed")
    problems.raise_if_any()
    trace_name = name or ("stdin" if label == "<stdin>" else Path(label).name.split(".")[0]) or "trace"
    trace = build_trace(printable(trace_name), jobs, provenance=printable(" ".join(" ".join(provenance).split())))
    return replace(trace, folder=folder_of(path))


def folder_of(path: Path | str) -> str:
    """Return the folder where the relative paths in a trace start.

    It is that of the trace's file, and the working folder for standard input.
    """
    return "" if str(path) == "-" else str(real_path(path).parent)


def _format_of(path: Path | str) -> str:
    text = str(path).removesuffix(".gz")
    suffix = Path(text).suffix.lower()
    if text == "-" or not suffix:
        return "csv"
    if suffix not in _SUFFIXES:
        allowed = f"the name must end with one of {', '.join(_SUFFIXES)} (or say which format it has)"
        raise InvalidInputError([Problem(file=str(path), line=0, column="", value="", allowed=allowed)])
    return _SUFFIXES[suffix]


def _items(kind: str, stream: IO[bytes], problems: Problems, said: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if kind == "csv":
        yield from _csv_items(stream, problems, said)
        return
    if kind == "jsonl":
        items = jsonl_items(text_lines(stream, problems), problems, said)
    else:
        most, what = (MAX_DOCUMENT, "a JSON trace") if kind == "json" else (MAX_YAML, "a YAML trace")
        text = whole_text(stream, problems, most, what)
        items = (json_items if kind == "json" else yaml_items)(text, problems, said)
    for line, item in items:
        row = as_row(item)
        if row is None:
            problems.add(line, "", item, "a job must be a mapping of column names to values")
        else:
            yield line, row


def _csv_items(stream: IO[bytes], problems: Problems, said: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    comment, skipped, lines = split_comments(text_lines(stream, problems))
    said.append(comment)
    rows = csv_rows(lines, problems, skipped_lines=skipped)
    first = next(rows, None)
    if first is None:
        if not problems.total:
            problems.add(0, "", "", f"is empty; its first line must name the columns: {', '.join(REQUIRED)}, ...")
        return
    line, header = first
    if not _check_header(line, header, problems):
        return
    names = [None if name.startswith(FREE_PREFIX) else name for name in header]
    guarded = [name for name in header if name in GUARDED]
    repeated = [name for name in header if name in _REPEATED]
    floats = [name for name in header if name in _REPEATED_FLOATS]
    texts: dict[str, str] = {}
    numbers: dict[str, float | str] = {}
    width = len(header)
    for line, cells in rows:
        if len(cells) != width:
            problems.add(line, "", f"{len(cells)} cells", f"must have {width} cells, as the header has")
            continue
        row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell and name}
        for name in guarded:
            cell = row.get(name, "")
            if cell.startswith("'") and _GUARD.match(cell):
                row[name] = cell[1:]
        for name in repeated:
            if name in row:
                row[name] = texts.setdefault(row[name], row[name])
        for name in floats:
            if name in row:
                row[name] = numbers.get(row[name]) or numbers.setdefault(row[name], _number(row[name]))
        yield line, row


def _number(cell: str) -> float | str:
    """Return the number in `cell`, or the cell itself where it is none.

    The validation then quotes the cell.
    """
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if cell in (repr(number), f"{number:g}") else cell


def _check_header(line: int, header: list[str], problems: Problems) -> bool:
    """Note unknown, repeated and missing columns; return True if the rows can be read."""
    for source, signature in _FOREIGN.items():
        if signature <= set(header):
            problems.add(line, "", "", f"this is an original trace: use loramux trace import --source {source}")
            return False
    before = problems.total
    if len(header) > MAX_COLUMNS:
        problems.add(line, "", f"{len(header)} columns", f"a table may have at most {MAX_COLUMNS} columns")
        return False
    seen: set[str] = set()
    for i, name in enumerate(header):
        if not name:
            problems.add(line, "", f"column {i + 1}", "every column needs a name")
        elif name in seen:
            problems.add(line, name, "", "is named twice")
        elif name not in COLUMNS and not name.startswith(FREE_PREFIX):
            problems.add(line, name, "", "" if problems.full else unknown_column(name))
        seen.add(name)
    for name in REQUIRED:
        if name not in header:
            problems.add(line, name, "", "is a required column and is missing")
    if not any(name in header for name in LENGTH_COLUMNS):
        problems.add(line, "", "", "one of total_steps, num_samples with epochs, or duration_s is required")
    return problems.total == before
