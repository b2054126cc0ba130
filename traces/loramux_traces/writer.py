"""Write a trace that `read_trace` reads back to the same jobs, provenance and hash."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Final

from loramux_traces.canonical import DEFAULTS
from loramux_traces.errors import UsageError
from loramux_traces.files import MAX_DOCUMENT, MAX_TABLE, MAX_YAML, size_text
from loramux_traces.job import JobSpec, Trace
from loramux_traces.reader import GUARDED

# A spreadsheet runs a cell that begins with one of these as a formula. A text that has apostrophes
# before one gets one more, so that reading takes off exactly what writing put on.
_FORMULA: Final = re.compile(r"'*[=+\-@＝＋－＠]")


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)  # the shortest text that reads back to the same number
    text = str(value)
    return "'" + text if column in GUARDED and _FORMULA.match(text) else text


def _write_csv(trace: Trace, out: IO[str]) -> None:
    # Long words are not broken, so that joining the lines again gives the same text.
    for line in textwrap.wrap(trace.provenance, 118, break_long_words=False, break_on_hyphens=False):
        out.write(f"# {line}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(trace.columns)
    row = attrgetter(*trace.columns)
    for job in trace.jobs:
        writer.writerow([_cell(c, v) for c, v in zip(trace.columns, row(job), strict=True)])


def _mapping(job: JobSpec, columns: tuple[str, ...]) -> dict[str, Any]:
    values = ((column, getattr(job, column)) for column in columns)
    return {column: value for column, value in values if column not in DEFAULTS or value != DEFAULTS[column]}


def _json_lines(trace: Trace) -> Iterator[str]:
    for job in trace.jobs:
        yield json.dumps(_mapping(job, trace.columns), ensure_ascii=False, allow_nan=False)


def _write_json(trace: Trace, out: IO[str]) -> None:
    out.write(f'{{"provenance": {json.dumps(trace.provenance)},\n "jobs": [\n')
    out.write(",\n".join(_json_lines(trace)))
    out.write("\n]}\n")


def _write_jsonl(trace: Trace, out: IO[str]) -> None:
    if trace.provenance:
        out.write(json.dumps({"provenance": trace.provenance}) + "\n")
    for line in _json_lines(trace):
        out.write(line + "\n")


def _write_yaml(trace: Trace, out: IO[str]) -> None:
    # Every JSON text is YAML, apart from the characters below. Each job is one line: a flow mapping
    # as an item of the list.
    out.write(f"provenance: {json.dumps(trace.provenance)}\njobs:\n")
    for job in trace.jobs:
        # YAML reads an escaped pair as two halves of a character, and takes these two characters
        # only escaped.
        text = json.dumps(_mapping(job, trace.columns), ensure_ascii=False, allow_nan=False)
        out.write("- " + text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff") + "\n")


#: Bytes that are read of a format; longer files are not written.
_MOST: Final = {".json": MAX_DOCUMENT, ".yaml": MAX_YAML, ".yml": MAX_YAML}
_WRITERS: Final = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".ndjson": _write_jsonl,
    ".yaml": _write_yaml,
    ".yml": _write_yaml,
}


def write_trace(trace: Trace, path: Path | str, *, force: bool = False) -> None:
    """Write `trace` as CSV, JSON, JSON lines or YAML, as the ending of `path` says.

    `.csv.gz` packs it; `-` is CSV on stdout. The file appears whole or not at all. Cells of user,
    group and dataset that begin with = + - @ get a leading apostrophe. Raises UsageError for an
    unknown ending, a missing folder, or a file that exists (unless `force`).
    """
    if str(path) == "-":
        _write_csv(trace, sys.stdout)
        return
    path = Path(path)
    packed = path.suffix == ".gz"
    suffix = Path(path.stem).suffix if packed else path.suffix
    write = _WRITERS.get(suffix.lower())
    if write is None:
        raise UsageError(f"{path}: the name must end with one of {', '.join(_WRITERS)} (or .csv.gz)")
    check_writable(path, force=force)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as raw:
            # mtime 0: the same trace gives the same bytes.
            packer = gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") if packed else raw
            with io.TextIOWrapper(packer, encoding="utf-8", newline="") as out:
                write(trace, out)
                out.flush()
                size, most = out.buffer.tell(), _MOST.get(suffix.lower(), MAX_TABLE)
                if size > most:
                    said = f"the trace has {size_text(size)}, and {size_text(most)} is read of this format"
                    raise UsageError(f"{path}: {said}: write .csv or .jsonl")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path | str, *, force: bool) -> None:
    """Raise UsageError if `path` may not be replaced, is a folder, or has no folder.

    Callers ask this before the work, not after it.
    """
    path = Path(path)
    if str(path) == "-":
        return
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give a file name")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; --force replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
