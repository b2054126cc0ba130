"""Import a log in the Standard Workload Format 2.2 (Parallel Workloads Archive).

A line has 18 fields, `;` begins a comment, -1 stands for unknown.

Originals: https://www.cs.huji.ac.il/labs/parallel/workload/logs.html; each log's page says how to
acknowledge it. Fields used, counted from 1: 1 job number, 2 submit time (s), 4 run time (s), 8
requested processors (5, the allocated ones, where it is unknown), 11 status, 12 user.

Rule: these are processors and not GPUs; `--processors-per-gpu` says how many make one (1 if not
given, and the report says so). A job that was swapped or checkpointed has a summary line (status 0,
1 or 5) with its whole run time, and a line for each part (2: to be continued, 3 and 4: the last
one), of which only the first has a submit time: the summary is the job, and where there is none the
parts are added up. Times of a log count from its `UnixStartTime`: several logs are laid behind each
other by theirs, or, where one has none, over each other, and the report says so. Left out: lines of
other than 18 fields, run time 0 or unknown, no processors, or more than 4,096 GPUs' worth of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from loramux_traces.files import open_input, text_lines
from loramux_traces.importers.common import RAGGED, ImportReport, RawJob, Source, checked, number, whole
from loramux_traces.problems import Problems

_FIELDS: Final = 18
_PARTS: Final = (2, 3, 4)
_LAST_PARTS: Final = (3, 4)
PART_OF_SUMMARY: Final = "part of a job that has a summary line"
PART_OF_JOB: Final = "further part of a job"
NO_START: Final = "logs without UnixStartTime: the logs were laid over each other"
_START: Final = re.compile(r"\s*;\s*UnixStartTime:\s*(\d{1,12})\b")


class _Line(NamedTuple):
    """A _Line holds the fields of one line that are used."""

    job: str
    submit_s: float | None
    run_s: float | None
    processors: int | None
    """None where they cannot be read, as with `run_s`."""
    status: int
    user: str


def _lines(path: Path, report: ImportReport) -> Iterator[_Line]:
    with open_input(path) as (label, stream):
        problems = Problems(label)
        for text in text_lines(stream, problems):
            fields = text.split()
            if not fields or fields[0].startswith(";"):
                continue
            report.rows += 1
            if len(fields) != _FIELDS:
                report.skipped[RAGGED] += 1
                continue
            submit, user = number(fields[1]), whole(fields[11])
            counts = [number(fields[7]), number(fields[4])]  # requested, else allocated
            known = [round(count) for count in counts if count is not None and round(count) > 0]
            yield _Line(
                job=fields[0] if whole(fields[0]) >= 0 else "",
                submit_s=None if submit is None or submit < 0 else submit,
                run_s=number(fields[3]),
                processors=known[0] if known else None if None in counts else 0,
                status=whole(fields[10]),
                user=f"u{user}" if user > 0 else "",
            )
        problems.raise_if_any()


def _grouped(parts: list[_Line]) -> Iterator[list[_Line]]:
    """Yield the parts of each job of one number.

    A job begins with the part that has a submit time, and at the latest after a last part.
    """
    group: list[_Line] = []
    for part in parts:
        if group and (part.submit_s is not None or group[-1].status in _LAST_PARTS):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _whole_jobs(path: Path, report: ImportReport) -> Iterator[_Line]:
    """Yield one line a job: its summary, or its parts added up."""
    submitted: dict[str, set[float | None]] = {}
    parts: dict[str, list[_Line]] = {}
    for line in _lines(path, report):
        if line.status in _PARTS and line.job:
            parts.setdefault(line.job, []).append(line)
        else:
            submitted.setdefault(line.job, set()).add(line.submit_s)
            yield line
    for job, lines in parts.items():
        known = submitted.get(job, set())
        for group in _grouped(lines):
            if known and (group[0].submit_s is None or group[0].submit_s in known):
                report.skipped[PART_OF_SUMMARY] += len(group)
                continue
            report.skipped[PART_OF_JOB] += len(group) - 1
            runs = [part.run_s for part in group if part.run_s is None or part.run_s > 0]
            counts = [part.processors for part in group if part.processors is not None]
            yield group[0]._replace(
                run_s=None if None in runs else sum(filter(None, runs)), processors=max(counts, default=None)
            )


def _start_unix_s(path: Path) -> float | None:
    """Return the instant from which a log counts its times, where its header says it."""
    with open_input(path) as (label, stream):
        for text in text_lines(stream, Problems(label)):
            if text.strip() and not text.startswith(";"):
                break
            if found := _START.match(text):
                return float(found[1])
    return None


def _later_s(paths: Sequence[Path], report: ImportReport) -> list[float]:
    """Return by how much each log begins after the first of them."""
    starts = [_start_unix_s(path) for path in paths] if len(paths) > 1 else []
    known = [start for start in starts if start is not None]
    if len(known) < len(paths):
        if starts:
            report.beside[NO_START] += len(starts) - len(known)
        return [0.0] * len(paths)
    return [start - min(known) for start in known]


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the jobs of the logs; the GPUs of each are its processors."""
    for path, later_s in zip(paths, _later_s(paths, report), strict=True):
        for line in _whole_jobs(path, report):
            gpus = None if line.processors is None else line.processors / report.processors_per_gpu
            submit_s = None if line.submit_s is None else line.submit_s + later_s
            names = {"user": line.user, "source_id": line.job, "file": str(path)}
            job = checked(report, submit_s, line.run_s, gpus, **names)
            if job is not None:
                yield job


SOURCE: Final = Source(
    name="swf",
    title="a log in the Standard Workload Format",
    url="https://www.cs.huji.ac.il/labs/parallel/workload/logs.html",
    licence="as its page in the Parallel Workloads Archive says",
    files="*.swf or *.swf.gz",
    real=("submit_s", "duration_s", "user"),
    read=read,
    counts_processors=True,
)
