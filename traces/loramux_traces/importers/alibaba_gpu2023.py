"""Import Alibaba GPU 2023: the pods of a GPU-sharing Kubernetes cluster.

Its files are `openb_pod_list_*.csv`.

Original: https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2023 (csv folder);
free for study and research (the repository's README), cite Weng et al., USENIX ATC 2023. Columns:
name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec, qos, pod_phase, creation_time,
deletion_time, scheduled_time (seconds from the start of the collection).

Rule: submitted at creation, running from scheduling to deletion; a share of a GPU (gpu_milli below
1000) becomes a whole one; the QoS class becomes the group. Left out: pods without GPU, never
scheduled (Pending), or deleted at once. Pods that still ran when the collection ended have its end
as their deletion, so their durations are too short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from loramux_traces.importers.common import ImportReport, RawJob, Source, checked, number, rows_of, span_s

_NEEDED: Final = ("name", "num_gpu", "qos", "creation_time", "deletion_time", "scheduled_time")


def read(paths: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the GPU pods of the lists, in file order."""
    for path in paths:
        for row in rows_of(path, report, _NEEDED):
            start, end = number(row["scheduled_time"]), number(row["deletion_time"])
            job = checked(
                report,
                number(row["creation_time"]),
                span_s(row["scheduled_time"], start, end),
                number(row["num_gpu"]),
                group=row["qos"],
                source_id=row["name"],
                file=str(path),
            )
            if job is not None:
                yield job


SOURCE: Final = Source(
    name="alibaba-gpu2023",
    title="Alibaba GPU cluster trace 2023 (Weng et al., ATC 2023)",
    url="https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2023",
    licence="free for study and research; see the repository",
    files="openb_pod_list_*.csv",
    real=("submit_s", "duration_s", "num_gpus", "group"),
    read=read,
)
