"""Import Alibaba PAI 2020: `pai_job_table.csv` and `pai_task_table.csv`.

Both files have no header line.

Original: https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2020 (downloads from
Aliyun OSS; unpack the two tar.gz); free for study and research (the repository's README), cite Weng
et al., NSDI 2022. Columns, from the `.header` files: job_name, inst_id, user, status, start_time,
end_time | job_name, task_name, inst_num, status, start_time, end_time, plan_cpu, plan_mem,
plan_gpu, gpu_type. A job's start_time is its submission; plan_gpu is in hundredths of a GPU an
instance.

Rule: GPUs are the sum of inst_num x plan_gpu / 100 over the tasks, rounded up (a share of a GPU
becomes a whole one); the running time goes from the first start of a GPU task to the job's end.
Tasks are found by the job's name; where a name was used again, each job has the tasks that started
in its time. Left out: jobs that are not Terminated or Failed, have no name or no GPU task, lack a
time, or end before they start.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.files import open_input, text_lines
from loramux_traces.importers.common import NO_ID, NOT_FINISHED, ImportReport, RawJob, Source, checked, number, rows_of
from loramux_traces.problems import Problems
from loramux_traces.tables import csv_rows

JOB_COLUMNS: Final = ("job_name", "inst_id", "user", "status", "start_time", "end_time")
TASK_COLUMNS: Final = (
    "job_name", "task_name", "inst_num", "status", "start_time", "end_time",
    "plan_cpu", "plan_mem", "plan_gpu", "gpu_type",
)  # fmt: skip


def _width(path: Path) -> int:
    with open_input(path) as (label, stream):
        problems = Problems(label)
        first = next(csv_rows(text_lines(stream, problems), problems), None)
        problems.raise_if_any()
    return len(first[1]) if first else 0


def _tables(paths: Sequence[Path]) -> tuple[Path, Path]:
    """Return (job table, task table), told apart by their width.

    So the order of the arguments does not matter.
    """
    widths = {_width(path): path for path in paths}
    if set(widths) != {len(JOB_COLUMNS), len(TASK_COLUMNS)}:
        allowed = "expected pai_job_table.csv (6 columns) and pai_task_table.csv (10 columns)"
        raise InvalidInputError([Problem(file=str(p), line=1, column="", value="", allowed=allowed) for p in paths])
    return widths[len(JOB_COLUMNS)], widths[len(TASK_COLUMNS)]


_MOST_GPUS: Final = 1e9
"""What a task that claims more is counted as; its job is left out all the same."""


class _Task(NamedTuple):
    """A _Task is one GPU task of a job."""

    start_s: float
    gpus: float


class _Times:
    """This holds the tasks of a name that was used again, by the time at which they start.

    The sums up to each task are exact, so that those between two times are too.
    """

    def __init__(self, tasks: Sequence[_Task]) -> None:
        ordered = sorted(tasks)
        self._starts = [task.start_s for task in ordered]
        shares = (Fraction(min(task.gpus, _MOST_GPUS)) for task in ordered)
        self._sums = list(accumulate(shares, initial=Fraction(0)))

    def between(self, first_s: float, last_s: float) -> tuple[float | None, float]:
        """Return when the first task from `first_s` to `last_s` starts, and the GPUs of all."""
        begin, end = bisect_left(self._starts, first_s), bisect_right(self._starts, last_s)
        if begin >= end:
            return None, 0.0
        return self._starts[begin], float(self._sums[end] - self._sums[begin])


def _gpu_tasks(path: Path, report: ImportReport) -> tuple[dict[str, list[_Task]], set[str]]:
    """Return the GPU tasks of each job, and the jobs with some that cannot be read (counted)."""
    tasks: dict[str, list[_Task]] = {}
    unread: set[str] = set()
    seen: set[tuple[str, ...]] = set()
    own = ImportReport()
    for row in rows_of(path, own, TASK_COLUMNS, header=TASK_COLUMNS):
        instances, share, start = number(row["inst_num"]), number(row["plan_gpu"]), number(row["start_time"])
        if share == 0 or not row["plan_gpu"].strip():
            continue  # a task on processors alone
        if share is None or instances is None or start is None or instances <= 0 or share < 0:
            report.beside["GPU tasks without a start or a count"] += 1
            unread.add(row["job_name"])
        elif not row["job_name"]:
            report.beside["GPU tasks without a job name"] += 1
        elif (key := tuple(row[column] for column in ("job_name", "task_name", "start_time", "end_time"))) in seen:
            report.beside["rows of tasks that repeat another"] += 1
        else:
            seen.add(key)
            tasks.setdefault(row["job_name"], []).append(_Task(start, instances * share / 100))
    report.beside.update({f"rows of tasks: {why}": count for why, count in own.skipped.items()})
    return tasks, unread


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the GPU jobs, in the order of the job table."""
    jobs, tasks = _tables(paths)
    gpu_tasks, unread = _gpu_tasks(tasks, report)
    rows = list(rows_of(jobs, report, JOB_COLUMNS, header=JOB_COLUMNS))
    uses = Counter(row["job_name"] for row in rows)
    again = {name: _Times(gpu_tasks.get(name, [])) for name, count in uses.items() if count > 1}
    for row in rows:
        if row["status"] not in ("Terminated", "Failed"):
            report.skipped[NOT_FINISHED] += 1
            continue
        if not row["job_name"]:
            report.skipped[NO_ID] += 1
            continue
        submit, end = number(row["start_time"]), number(row["end_time"])
        times = again.get(row["job_name"])
        if times is not None and submit is not None:  # a name used again: each has the tasks of its time
            first, gpus = times.between(submit, math.inf if end is None else end)
        else:
            own = gpu_tasks.get(row["job_name"], [])
            first = min((task.start_s for task in own), default=None)
            gpus = math.fsum(task.gpus for task in own)
        duration = None if end is None or first is None else end - first
        names = {"user": row["user"], "source_id": row["job_name"]}
        if first is None:  # the reason is its GPUs
            job = checked(report, submit, 1.0, None if row["job_name"] in unread else gpus, **names)
        else:
            job = checked(report, submit, duration, gpus, **names)
        if job is not None:
            yield job


SOURCE: Final = Source(
    name="alibaba-pai2020",
    title="Alibaba PAI GPU cluster trace 2020 (Weng et al., NSDI 2022)",
    url="https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2020",
    licence="free for study and research; see the repository",
    files="pai_job_table.csv and pai_task_table.csv",
    real=("submit_s", "duration_s", "num_gpus", "user"),
    read=read,
    n_files=2,
)
