"""Import a log in the Standard Workload Format 2.2 (Parallel Workloads Archive).

A line has 18 fields, `;` begins a comment, -1 stands for unknown.

Originals: https://www.cs.huji.ac.il/labs/parallel/workload/logs.html; each log's page says how to
acknowledge it. Fields used, counted from 1: 1 job number, 2 submit time (s), 4 run time (s), 8
requested processors (5, the allocated ones, where it is unknown), 12 user.

Rule: one processor becomes one GPU. Left out: lines of other than 18 fields, run time 0 or unknown,
no processors, or more than 4,096 of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.files import open_input, text_lines
from loramux_traces.importers.common import RAGGED, ImportReport, RawJob, Source, checked, number, whole
from loramux_traces.problems import Problems

_FIELDS: Final = 18


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the jobs of the logs, in file order."""
    for path in paths:
        with open_input(path) as (label, stream):
            problems = Problems(label)
            for line in text_lines(stream, problems):
                fields = line.split()
                if not fields or fields[0].startswith(";"):
                    continue
                report.rows += 1
                if len(fields) != _FIELDS:
                    report.skipped[RAGGED] += 1
                    continue
                requested, user = whole(fields[7]), whole(fields[11])
                submit = number(fields[1])
                job = checked(
                    report,
                    None if submit is None or submit < 0 else submit,
                    number(fields[3]),
                    requested if requested > 0 else whole(fields[4]),
                    user=f"u{user}" if user > 0 else "",
                    source_id=fields[0],
                )
                if job is not None:
                    yield job
            problems.raise_if_any()


SOURCE: Final = Source(
    name="swf",
    title="a log in the Standard Workload Format",
    url="https://www.cs.huji.ac.il/labs/parallel/workload/logs.html",
    licence="as its page in the Parallel Workloads Archive says",
    files="*.swf or *.swf.gz",
    real=("submit_s", "duration_s", "num_gpus", "user"),
    read=read,
)
