"""This module makes what `submit` sends.

That is the jobs of a file, checked as far as they can be without the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_traces.errors import UsageError

if TYPE_CHECKING:
    from loramux_runtime.jobs.jobs_file import TrainJob
    from loramux_runtime.live.state.store import Store

TABLES = {".csv", ".jsonl", ".ndjson"}
"""Endings of the files that hold traces."""


def read_submission(file: Path, *, job_id: str | None, priority: int | None) -> Sequence[TrainJob]:
    """Read the jobs of a job.yaml or of a trace.

    Raises InvalidInputError, and UsageError where --id is given for several jobs.
    """
    from loramux_runtime.jobs.jobs_file import TrainJob, read_jobs
    from loramux_runtime.live.trace_replay import submitted

    jobs = submitted(file) if TABLES.intersection(file.suffixes) else read_jobs(file)
    if job_id is not None and len(jobs) > 1:
        raise UsageError(f"--id names one job, {file} holds {len(jobs)}")
    changes = {name: value for name, value in (("id", job_id), ("priority", priority)) if value is not None}
    if not changes:
        return jobs
    from pydantic import ValidationError

    from loramux_traces.file_model import faults

    try:
        return [TrainJob.model_validate({**job.model_dump(), **changes}) for job in jobs]
    except ValidationError as error:
        raise UsageError("\n".join(f"--{fault}" for fault in faults(error, changes))) from error


def check_files(file: Path, jobs: Sequence[TrainJob], folder: Path) -> None:
    """Raise InvalidInputError for data that is not there.

    Better now than when the scheduler looks.
    """
    from loramux_traces.errors import InvalidInputError, Problem

    problems = []
    for job in jobs:
        for key in ("path", "eval_path"):
            wanted = getattr(job.data, key, None)
            if wanted is not None and not (folder / wanted).exists():
                what = f"job {job.id}: no such file ({folder / wanted})"
                problems.append(Problem(file=str(file), line=0, column=f"data.{key}", value=str(wanted), allowed=what))
    if problems:
        raise InvalidInputError(problems[:50], total=len(problems))


def other_base(file: Path, store: Store) -> str | None:
    """Return the base model that a trace says its jobs are on, where the scheduler has another."""
    from loramux_profiles.checked import read_checked

    ours = store.fact("base_model")
    if not ours or not TABLES.intersection(file.suffixes):
        return None
    others = sorted({spec.base_model for spec in read_checked(file)} - {ours})
    return f"its jobs are of {', '.join(others)}; here they train on {ours}" if others else None


def send(store: Store, jobs: Sequence[TrainJob], folder: Path) -> None:
    """Put the jobs into the queue, all or none.

    Raises StateError where that is not the queue that the running scheduler has open: the jobs
    would be in a file that nobody reads.
    """
    store.submit([(job.model_dump(mode="json"), folder, job.submit_s) for job in jobs])
    _arrived(store, [job.id for job in jobs])


def _arrived(store: Store, names: Sequence[str]) -> None:
    """Raise StateError where the jobs are not to be found by whoever looks for them."""
    from loramux_runtime.live.state.marker import read_marker
    from loramux_runtime.live.state.nodes import node
    from loramux_runtime.live.state.store import DATABASE, Store
    from loramux_traces.errors import StateError
    from loramux_traces.locking import owner

    doing = read_marker(store.folder) if owner(store.folder) is not None else None
    for name, known in ({} if doing is None else doing.nodes).items():
        if node(store.folder / name) != known:
            what = "its folder" if name == "." else name
            raise StateError(
                f"{store.folder}: not submitted: the scheduler that runs on it has another {what} open than is "
                "there now (deleted, moved or replaced); end it, and submit again"
            )
    if doing is not None and doing.mark is not None and _mark(store.folder / DATABASE) != doing.mark:
        raise StateError(
            f"{store.folder}: not submitted: {DATABASE} has been overwritten while a scheduler runs on it; "
            "end it, put the queue back, and submit again"
        )
    again = Store(store.folder)
    try:
        missing = [name for name in names if not again.has_job(name)]
    finally:
        again.close()
    if missing:
        raise StateError(f"{store.folder}: not submitted: {', '.join(missing[:5])} cannot be found in the queue again")


def _mark(database: Path) -> int:
    """Return the mark of the queue (`same_folder`) as it is in the file itself."""
    import os

    from loramux_runtime.live.state.same_folder import mark_of

    # it is not closed: with it this process's SQLite would lose its locks of the file
    return mark_of(os.open(database, os.O_RDONLY | os.O_CLOEXEC))
