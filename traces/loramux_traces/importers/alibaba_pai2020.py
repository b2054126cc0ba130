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
Left out: jobs that are not Terminated or Failed, have no GPU task, or lack a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.files import open_input, text_lines
from loramux_traces.importers.common import NOT_FINISHED, ImportReport, RawJob, Source, checked, number, rows_of
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


def _gpu_tasks(path: Path) -> dict[str, tuple[float, float]]:
    """Return for each job (GPUs of its tasks, first start of a GPU task)."""
    tasks: dict[str, tuple[float, float]] = {}
    for row in rows_of(path, ImportReport(), TASK_COLUMNS, header=TASK_COLUMNS):
        instances, share, start = number(row["inst_num"]), number(row["plan_gpu"]), number(row["start_time"])
        if not instances or not share or start is None:
            continue
        gpus, first = tasks.get(row["job_name"], (0.0, start))
        tasks[row["job_name"]] = (gpus + instances * share / 100, min(first, start))
    return tasks


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the GPU jobs, in the order of the job table."""
    jobs, tasks = _tables(paths)
    gpu_tasks = _gpu_tasks(tasks)
    for row in rows_of(jobs, report, JOB_COLUMNS, header=JOB_COLUMNS):
        if row["status"] not in ("Terminated", "Failed"):
            report.skipped[NOT_FINISHED] += 1
            continue
        gpus, start = gpu_tasks.get(row["job_name"], (0.0, 0.0))
        end = number(row["end_time"])
        duration = None if end is None else end - start
        names = {"user": row["user"], "source_id": row["job_name"]}
        job = checked(report, number(row["start_time"]), duration if gpus else 1.0, gpus, **names)
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
