"""Import SenseTime Helios: `cluster_log.csv` of one cluster (Earth, Saturn, Uranus, Venus).

Original: https://github.com/S-Lab-System-Group/HeliosData, CC-BY-4.0; cite Hu et al., SC 2021.
Columns: job_id, user, vc, (jobname,) gpu_num, cpu_num, node_num, state, submit_time, start_time,
end_time, duration, queue; they are found by name.

Rule: `duration` (end - start, seconds) as given; the virtual cluster becomes the group. Left out:
CPU-only jobs, jobs that never ran (duration 0), rows without a submission time. All final states
are kept: they held their GPUs. Every cluster numbers its jobs from 1, so give the files of several
clusters as several files; of a job that was queued again (one id, one submission) the longest run
is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.importers.common import ImportReport, RawJob, Source, checked, moments, number, rows_of

_NEEDED: Final = ("job_id", "user", "vc", "gpu_num", "submit_time", "duration")


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the GPU jobs of the logs, in file order."""
    for path in paths:
        for row in rows_of(path, report, _NEEDED):
            job = checked(
                report,
                moments(report, row, "submit_time")[0],
                number(row["duration"]),
                number(row["gpu_num"]),
                user=row["user"],
                group=row["vc"],
                source_id=row["job_id"],
                file=str(path),
            )
            if job is not None:
                yield job


SOURCE: Final = Source(
    name="helios",
    title="SenseTime Helios traces (Hu et al., SC 2021)",
    url="https://github.com/S-Lab-System-Group/HeliosData",
    licence="CC-BY-4.0",
    files="cluster_log.csv",
    real=("submit_s", "duration_s", "num_gpus", "user", "group"),
    read=read,
)
