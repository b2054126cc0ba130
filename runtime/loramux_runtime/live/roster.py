"""This module keeps the jobs of a state folder as the loop and the trainer have them.

It keeps what they have done, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loramux_policies.loop.intake import Intake
from loramux_policies.loop.job import Job
from loramux_profiles.cost import CostModel
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.jobs.preparation import Preparation, PreparedJob
from loramux_runtime.jobs.training_job import Log, TrainingJob
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import JobRow
from loramux_traces.errors import LoramuxError
from loramux_traces.job import JobSpec
from loramux_traces.results import FAILED_DATA, REJECTED, UNSCHEDULABLE

Make = Callable[[PreparedJob, Log], TrainingJob]
"""Makes a job's training state from its first step; its adapter is on the host."""


class Roster:
    """Makes jobs of rows, and keeps what is needed to train them until they end."""

    def __init__(self, preparation: Preparation, make: Make, cost: CostModel, devices: int, book: Book) -> None:
        self._preparation = preparation
        self._make = make
        self._book = book
        self._intake = Intake([cost], [devices], oracle=False, unschedulable=self._unschedulable)
        self._prepared: dict[str, PreparedJob] = {}
        self._began = False
        """Whether the job that is being priced has begun in an earlier process."""

    def job(self, row: JobRow) -> Job | None:
        """Return the job of a row, or None where it cannot be trained here.

        In that case its end is in the book.
        """
        job_id = row["job_id"]
        before = row["data_sha256"]
        try:
            config = TrainJob.model_validate_json(row["config"])
            prepared = self._preparation.prepare(config, Path(row["folder"]), submit_s=row["submit_s"])
            spec = prepared.spec
            if row["micro_batch"] is not None:
                # the job goes on as it began: another size would be other bits
                spec = replace(spec, micro_batch_size=row["micro_batch"])
            self._began = before is not None
            job = self._intake.job(row["seq"], spec)
            if job is None:
                return None
            # synthetic rows are drawn by micro-batch: by the first size, also after it has been
            # halved
            drawn_by = row["drawn_by"] or job.cost_on(0).rows
            prepared = replace(prepared, data=prepared.data.bound(drawn_by))
            digest = prepared.data.train.sha256
        except (LoramuxError, ValidationError) as error:
            if before is None:
                self._book.end_apart(job_id, REJECTED, "; ".join(str(error).splitlines()))
            else:
                # a disk that is not there, for example: what the job has learned is kept
                self._book.hold_apart(job_id, f"its data cannot be read any more: {error}")
            return None
        if row["start_s"] is not None and digest != before:
            reason = "its rows are not those it began with: the data file has changed"
            self._book.end_apart(job_id, FAILED_DATA, reason)
            return None
        self._prepared[job_id] = prepared
        _go_on(job, row)
        training_steps = prepared.config.steps or job.declared_steps
        self._book.set(
            job_id,
            data_sha256=digest,
            micro_batch=job.cost_on(0).rows,
            drawn_by=drawn_by,
            predicted_bytes=job.need_bytes,
            total_steps=round(training_steps),
        )
        return job

    def halved(self, job: Job) -> Job | None:
        """Return the same job with half the rows in its micro-batches.

        Returns None where one row is all there is.
        """
        rows = job.cost_on(0).rows
        if rows == 1:
            return None
        spec = replace(job.spec, micro_batch_size=max(1, rows // 2))
        smaller = self._intake.job(job.index, spec)
        if smaller is not None:
            self._book.set(job.job_id, micro_batch=max(1, rows // 2), predicted_bytes=smaller.need_bytes)
        return smaller

    def training(self, job_id: str, log: Callable[[str, dict[str, Any]], None]) -> TrainingJob:
        """Return the job's training state from its first step; its adapter is on the host."""
        return self._make(self._prepared[job_id], lambda record: log(job_id, record))

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._prepared.pop(job_id, None)

    def _unschedulable(self, index: int, spec: JobSpec, reason: str) -> None:
        if self._began:
            # there is less memory than the job began on
            self._book.hold_apart(spec.job_id, reason)
        else:
            self._book.end_apart(spec.job_id, UNSCHEDULABLE, reason)


def _go_on(job: Job, row: JobRow) -> None:
    """Give a new record of a job what an earlier one had come to."""
    job.done_steps = row["progress_steps"]
    job.attained_s = row["attained_s"]
    job.paused_s = row["paused_s"]
    job.preemptions = row["preemptions"]
    job.oom_events = row["oom_events"]
    if row["start_s"] is not None:
        job.first_start_s = row["start_s"]
        job.last_stop_s = row["start_s"] if row["stopped_s"] is None else row["stopped_s"]
