"""Import AcmeTrace (Shanghai AI Laboratory, LLM development).

Its files are `trace_seren.csv` and `trace_kalos.csv`.

Original: https://github.com/InternLM/AcmeTrace (data/job_trace); licence in its LICENSE.txt, cite
Hu et al., NSDI 2024. Columns: job_id, user, node_num, gpu_num, cpu_num, (Kalos: mem_per_pod_GB,
shared_mem_per_pod,) type, state, submit_time, start_time, end_time, (Kalos: fail_time, stop_time,)
duration, queue, gpu_time; they are found by name.

Rule: running time is end_time - start_time. The `duration` column is not used: its documentation
says end - start, but in the published Kalos example rows it is end - submit. The workload type
becomes the group. A job that Slurm queued again has a row for each run, with one id and one
submission: it began anew each time, so the longest run is the job. Left out: CPU-only jobs, jobs
that never ran or end before they start, rows without a submission time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.importers.common import ImportReport, RawJob, Source, checked, moments, number, rows_of, span_s

_NEEDED: Final = ("job_id", "user", "gpu_num", "type", "submit_time", "start_time", "end_time")


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the GPU jobs of the traces, in file order."""
    for path in paths:
        for row in rows_of(path, report, _NEEDED):
            submit, start, end = moments(report, row, "submit_time", "start_time", "end_time")
            job = checked(
                report,
                submit,
                span_s(row["start_time"], start, end),
                number(row["gpu_num"]),
                user=row["user"],
                group=row["type"],
                source_id=row["job_id"],
                file=str(path),
            )
            if job is not None:
                yield job


SOURCE: Final = Source(
    name="acme",
    title="AcmeTrace (Hu et al., NSDI 2024)",
    url="https://github.com/InternLM/AcmeTrace",
    licence="see the repository's LICENSE.txt",
    files="trace_seren.csv or trace_kalos.csv",
    real=("submit_s", "duration_s", "num_gpus", "user", "group"),
    read=read,
)
