"""When checkpoints are written: every so often, never so often that they cost more than a fiftieth of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from loramux_policies.job import Job
from loramux_runtime.live.book import Book
from loramux_runtime.live.checkpoint import CheckpointStore
from loramux_runtime.training_job import TrainingJob
from loramux_traces.errors import StateError

MOST_SHARE: Final = 0.02
"""Of the time."""


class Saving:
    """Checkpoints of the jobs in memory, running or paused."""

    def __init__(
        self, checkpoints: CheckpointStore, book: Book, training: Mapping[str, TrainingJob], every_s: float
    ) -> None:
        self.checkpoints = checkpoints
        self._book = book
        self._training = training
        self._every_s = every_s
        self._saved: dict[str, tuple[int, int]] = {}
        """Position (step, rows of the next) of each job's last checkpoint."""
        self._next_s: float | None = None
        self._cost_s = 0.0
        """What the last round took."""

    def tidy(self, needed: Collection[str]) -> None:
        """Delete what a killed process has left: half-written files, and checkpoints of jobs that have ended."""
        self.checkpoints.sweep()
        for job_id in self.checkpoints.job_ids():
            if job_id not in needed:
                self.checkpoints.remove(job_id)

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self.checkpoints.remove(job_id)
        self._saved.pop(job_id, None)

    def load(self, job: Job, training: TrainingJob, warn: Callable[[str], None]) -> None:
        """Bring a job to its newest valid checkpoint, if it has one. With none valid it begins again: the same steps
        give the same bits.
        """
        try:
            found = self.checkpoints.load(job.job_id, training)
        except StateError as error:
            warn(f"{error}; {job.job_id} begins again at its first step")
            found = None
        if found is not None:
            self._saved[job.job_id] = (training.step, training.rows_done)
            job.attained_s = float(found["attained_s"])
        else:
            job.attained_s = 0.0
        job.done_steps = training.progress_steps

    def due(self, now_s: float) -> bool:
        """Whether a round of checkpoints is due."""
        if self._next_s is None:
            self._next_s = now_s + self._every_s
        return now_s >= self._next_s

    def save_due(self, now_s: float) -> list[tuple[str, str]]:
        """Save every job that has moved on. Returns those that could not be, and why."""
        began = time.monotonic()
        failed = self.save_all()
        self._cost_s = time.monotonic() - began
        self._next_s = now_s + max(self._every_s, self._cost_s / MOST_SHARE)
        return failed

    def save_all(self) -> list[tuple[str, str]]:
        """The same, whether or not it is due."""
        moved = {
            job_id: training
            for job_id, training in self._training.items()
            if self._saved.get(job_id, (0, 0)) != (training.step, training.rows_done) and not training.finished
        }
        if not moved:
            return []
        self._book.flush()  # the records of every step that a checkpoint has behind it are committed before it exists
        failed = []
        for job_id, training in moved.items():
            try:
                self.save(job_id, training)
            except StateError as error:
                failed.append((job_id, f"its checkpoint cannot be written: {error}"))
        return failed

    def save_now(self, job_id: str) -> None:
        """A job that is about to rest, if it is in memory. StateError where it cannot be written."""
        training = self._training.get(job_id)
        if training is not None:
            self._book.flush()
            self.save(job_id, training)

    def save(self, job_id: str, training: TrainingJob) -> None:
        """One job's checkpoint. StateError where it cannot be written."""
        self.checkpoints.save(job_id, training, {"attained_s": self._book.attained_s(job_id)})
        self._saved[job_id] = (training.step, training.rows_done)
