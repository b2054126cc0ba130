"""Import Microsoft Philly as a table with one row a job.

Its columns are `timestamp,duration,num_gpus,gpu_time,cluster`.

Original: https://github.com/msr-fiddle/philly-traces (Jeon et al., USENIX ATC 2019), CC-BY-4.0;
this table form (a submission time, a duration in seconds, a GPU count and the virtual cluster) is
derived from its `cluster_job_log`. Times are Pacific local time without an offset. The table has no
users: the virtual cluster becomes the group, and users stay empty.

Left out: rows without a time, of zero duration, or with no GPU, and those whose numbers are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.importers.common import ImportReport, RawJob, Source, checked, moments, number, rows_of

_NEEDED: Final = ("timestamp", "duration", "num_gpus")


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the jobs of the tables, in file order."""
    for path in paths:
        for row in rows_of(path, report, _NEEDED):
            job = checked(
                report,
                moments(report, row, "timestamp")[0],
                number(row["duration"]),
                number(row["num_gpus"]),
                group=row.get("cluster", ""),
                file=str(path),
            )
            if job is not None:
                yield job


SOURCE: Final = Source(
    name="philly-table",
    title="Microsoft Philly traces (Jeon et al., ATC 2019), table form",
    url="https://github.com/msr-fiddle/philly-traces",
    licence="CC-BY-4.0",
    files="a CSV with timestamp, duration, num_gpus (and gpu_time, cluster)",
    real=("submit_s", "duration_s", "num_gpus", "group"),
    read=read,
)
