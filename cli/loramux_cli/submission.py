"""What `submit` sends: jobs of a file, checked as far as they can be without the base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_traces.errors import UsageError

if TYPE_CHECKING:
    from loramux_runtime.jobs_file import TrainJob
    from loramux_runtime.live.store import Store

TABLES = {".csv", ".jsonl", ".ndjson"}
"""Endings of traces."""


def read_submission(file: Path, *, job_id: str | None, priority: int | None) -> Sequence[TrainJob]:
    """Jobs of a job.yaml or of a trace. Raises InvalidInputError, UsageError where --id is given for several."""
    from loramux_cli.live_trace import submitted
    from loramux_runtime.jobs_file import TrainJob, read_jobs

    jobs = submitted(file) if TABLES.intersection(file.suffixes) else read_jobs(file)
    if job_id is not None and len(jobs) > 1:
        raise UsageError(f"--id names one job, {file} holds {len(jobs)}")
    changes = {name: value for name, value in (("id", job_id), ("priority", priority)) if value is not None}
    if not changes:
        return jobs
    from pydantic import ValidationError

    try:
        return [TrainJob.model_validate({**job.model_dump(), **changes}) for job in jobs]
    except ValidationError as error:
        raise UsageError("; ".join(e["msg"] for e in error.errors(include_url=False))) from error


def send(store: Store, jobs: Sequence[TrainJob], folder: Path) -> None:
    """Put them into the queue, all or none."""
    store.submit([(job.model_dump(mode="json"), folder, job.submit_s) for job in jobs])
