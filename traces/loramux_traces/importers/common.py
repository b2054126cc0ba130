"""Provide what every importer shares.

That is the raw job it yields, the count of what it skips, and careful parsing of cells.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from loramux_traces.files import open_input, text_lines
from loramux_traces.problems import Problems
from loramux_traces.tables import csv_rows

#: Reasons for which a row of an original is left out; every importer uses these words.
NO_TIME: Final = "no readable time"
BARE_TIME: Final = "times that are digits alone (epoch seconds?), not a date and a time"
NO_DURATION: Final = "no running time above 0"
BAD_DURATION: Final = "no readable running time"
NO_GPU: Final = "no GPU"
BAD_GPUS: Final = "no readable number of GPUs"
NOT_FINISHED: Final = "not finished"
RAGGED: Final = "wrong number of cells"
REQUEUED: Final = "shorter run of a requeued job"
NO_ID: Final = "no job id"
MIXED: Final = "some times with an offset and some without"
MAX_GPUS: Final = 4096
MAX_DURATION_S: Final = 1e10
_OFFSET: Final = re.compile(r"(?:[Zz]|[+-][0-9]{2}:?[0-9]{2}(?::?[0-9]{2})?)$")
_DIGITS: Final = re.compile(r"[0-9.,]+")
_ABSENT: Final = frozenset(("", "none", "null", "nan", "nat", "unknown"))


class RawJob(NamedTuple):
    """A RawJob is one job of an original, with what is real about it and nothing else.

    Times are in epoch (or log) seconds.
    """

    submit_s: float
    duration_s: float
    num_gpus: int
    user: str = ""
    group: str = ""
    source_id: str = ""
    """Id in the original, which counts within one file (empty: it has none)."""
    file: str = ""


@dataclass(slots=True)
class ImportReport:
    """An ImportReport counts the rows that were read, and those left out by reason."""

    rows: int = 0
    processors_per_gpu: int = 1
    """How many processors were taken as one GPU, where the original has no GPUs."""
    skipped: Counter[str] = field(default_factory=Counter)
    offsets: Counter[bool] = field(default_factory=Counter)
    """Rows by whether their times have an offset from UTC."""
    beside: Counter[str] = field(default_factory=Counter)
    """What else was left out or read in a way that must be said: parts of rows, other tables."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        kept = self.rows - sum(self.skipped.values())
        beside = ", ".join(f"{count} {what}" for what, count in sorted(self.beside.items()))
        if len(self.offsets) > 1:
            beside += f"{', ' if beside else ''}{self.offsets[False]} rows whose times have no offset, taken as UTC"
        said = f"{self.rows} rows read, {kept} kept" + (f", skipped: {reasons}" if reasons else "")
        return said + (f"; also {beside}" if beside else "")


Read = Callable[[Sequence[Path], ImportReport], Iterator[RawJob]]


@dataclass(frozen=True, slots=True)
class Source:
    """A Source is one public trace and its reader.

    It says where the user gets the trace, under which licence, and which columns of ours are real.
    """

    name: str
    title: str
    url: str
    licence: str
    files: str
    real: tuple[str, ...]
    read: Read
    n_files: int | None = None
    """Number of files it takes; None: one or more, whose jobs name theirs."""
    counts_processors: bool = False
    """Whether what becomes the GPUs of a job is its processors."""


def number(cell: Any) -> float | None:
    """Return the finite number in a cell, or None; `1_000` is Python's notation, and no number."""
    if isinstance(cell, str) and "_" in cell:
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def span_s(start_cell: str, start_s: float | None, end_s: float | None) -> float | None:
    """Return the seconds from a start to an end: 0 where the start's cell says that it never ran.

    It is None where one of them cannot be read.
    """
    if start_cell.strip().lower() in _ABSENT:
        return 0.0
    return None if start_s is None or end_s is None else end_s - start_s


def whole(cell: Any) -> int:
    """Return the whole number in a cell (2 and 2.0), or 0."""
    value = number(cell)
    return round(value) if value is not None and abs(value) < 1e15 else 0


def moment(cell: Any) -> float | None:
    """Return the epoch seconds of a text such as `2017-10-09 07:01:55`, or None.

    Digits alone are none: no original writes epoch seconds, and Python reads the milliseconds
    1611121212345 as a day of the year 1611.

    The text may have an offset; without one it is taken as UTC. Local clocks that jump for daylight
    saving keep that jump: the originals do not say which side of it a time is on.
    """
    if not isinstance(cell, str) or cell.strip().lower() in _ABSENT:
        return None
    text = cell.strip()
    if _DIGITS.fullmatch(text):
        return None
    try:
        parsed = datetime.fromisoformat(text)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def moments(report: ImportReport, row: Mapping[str, Any], *names: str) -> list[float | None]:
    """Return the epoch seconds of several cells of one row, all None where they do not agree.

    Cells with and without an offset in one row cannot be subtracted; such a row is counted.
    """
    texts = [cell.strip() for cell in (row.get(name) for name in names) if isinstance(cell, str)]
    kinds = {_OFFSET.search(text) is not None for text in texts if text.lower() not in _ABSENT}
    if len(kinds) > 1:
        report.beside[f"rows with {MIXED}"] += 1
        return [None] * len(names)
    bare = sum(1 for text in texts if _DIGITS.fullmatch(text))
    if bare:
        report.beside[BARE_TIME] += bare
    report.offsets.update(kinds)
    return [moment(row.get(name)) for name in names]


def longest_runs(jobs: Iterable[RawJob], report: ImportReport) -> list[RawJob]:
    """Return the jobs with one row each.

    A scheduler such as Slurm gives a job that it queues again (its node failed, it was preempted)
    another row with the same id and submission. Such a job begins anew, so its longest run is the
    job. An id that comes back with another submission, user or file is another job; rows without an
    id are jobs of their own.
    """
    kept: dict[tuple[str, str, str, float], RawJob] = {}
    alone = []
    for job in jobs:
        if not job.source_id:
            alone.append(job)
            continue
        key = (job.file, job.source_id, job.user, job.submit_s)
        other = kept.get(key)
        if other is not None:
            report.skipped[REQUEUED] += 1
            job = max(job, other, key=lambda run: (run.duration_s, run.num_gpus, run.group))
        kept[key] = job
    return [*kept.values(), *alone]


def checked(
    report: ImportReport, submit_s: float | None, duration_s: float | None, gpus: float | None, **names: str
) -> RawJob | None:
    """Return the job, or None with the reason counted; what is None could not be read.

    This is the one rule of what is left out.
    """
    if submit_s is None:
        report.skipped[NO_TIME] += 1
    elif duration_s is None:
        report.skipped[BAD_DURATION] += 1
    elif not 0 < duration_s <= MAX_DURATION_S:
        reason = NO_DURATION if duration_s <= 0 else f"a running time above {MAX_DURATION_S:,.0f} s"
        report.skipped[reason] += 1
    elif gpus is None:
        report.skipped[BAD_GPUS] += 1
    elif not 0 < gpus <= MAX_GPUS:
        report.skipped[NO_GPU if gpus <= 0 else f"more than {MAX_GPUS} GPUs"] += 1
    else:
        # A share of a GPU becomes a whole one, because sharing is decided by the scheduler here.
        return RawJob(submit_s, max(duration_s, 1e-9), max(1, math.ceil(gpus - 1e-9)), **names)
    return None


def rows_of(
    path: Path, report: ImportReport, needed: Sequence[str], *, header: Sequence[str] | None = None
) -> Iterator[dict[str, str]]:
    """Yield the rows of an original CSV as mappings; ragged rows are counted as skipped.

    `header` names the columns of a file that has none (a line that repeats it is passed over).
    Raises InvalidInputError for a file that is not such a table: columns missing, not text, quotes
    broken.
    """
    with open_input(path) as (label, stream):
        problems = Problems(label)
        rows = csv_rows(text_lines(stream, problems), problems)
        if header is None:
            line, names = next(rows, (0, []))
            if not names and not problems.total:
                problems.add(0, "", "", f"is empty; expected a line of column names with {', '.join(needed)}")
            for column in needed:
                if names and column not in names:
                    problems.add(line, column, "", "is missing: the original has this column")
                elif names.count(column) > 1:
                    problems.add(line, column, "", "is named twice")
            problems.raise_if_any()
        else:
            names = list(header)
        for _, cells in rows:
            if header is not None and cells == names:
                continue
            report.rows += 1
            if len(cells) != len(names):
                report.skipped[RAGGED] += 1
                continue
            yield dict(zip(names, cells, strict=True))
        problems.raise_if_any()
