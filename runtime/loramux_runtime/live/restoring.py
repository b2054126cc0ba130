"""This module makes the training states of a live scheduler's jobs, and books what was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loramux_policies.loop.job import Job
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.makers import Made
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.state.book import Book
from loramux_runtime.train.faults import FaultPlan


class Restoring:
    """Makes states from the newest valid checkpoints, or at the first step.

    From there the training gives the same bits again (contract: `makers.States`). `record` takes
    the training records of a job.
    """

    def __init__(
        self,
        roster: Roster,
        saving: Saving,
        book: Book,
        faults: FaultPlan,
        record: Callable[[str, dict[str, Any]], None],
        warn: Callable[[str], None],
    ) -> None:
        self._roster, self._saving, self._book = roster, saving, book
        self._faults, self._record, self._warn = faults, record, warn

    def size_bytes(self, job: Job) -> float:
        """Return the bytes of the state, and of the rows that a checkpoint is held against."""
        return job.cost_on(0).own_bytes + self._roster.rows_bytes(job.job_id)

    def make(self, job_id: str) -> Made:
        """Make a state; nothing of the queue or the loop is touched."""
        self._faults.reach("restore", job_id=job_id)
        warnings: list[str] = []
        entry, training = self._roster.training(job_id, self._record)
        found = self._saving.read(job_id, training, warnings.append)
        return Made(training=training, found=found, warnings=tuple(warnings), entry=entry)

    def is_current(self, job: Job, made: Made) -> bool:
        """Return whether the job has no other rows by now."""
        return self._roster.is_made_from(job.job_id, made.entry)

    def take(self, job: Job, made: Made) -> None:
        """Book a state that was made: whatever the process died of before, it was not this."""
        for text in made.warnings:
            self._warn(text)
        if made.found is None and not made.warnings and job.done_steps >= 1.0:
            at = f"it was at step {job.done_steps:.0f}"
            self._warn(f"{job.job_id} begins again at its first step: it has no checkpoint ({at})")
        self._saving.took_up(job, made.training, made.found)
        self._book.forget_records(job.job_id, made.training.step)
        if self._book.row(job.job_id)["admission_deaths"]:
            self._book.set(job.job_id, admission_deaths=0)

    def again(self, job: Job) -> TrainingJob:
        """Return the state of a job as it was saved last.

        What was learned since went with the worker, and is learned again.
        """
        made = self.make(job.job_id)
        self.take(job, made)
        self._book.set(job.job_id, step=made.training.step, tokens=made.training.tokens)
        return made.training
