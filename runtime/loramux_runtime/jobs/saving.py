"""This module decides when checkpoints are written.

They are written every so often, but never so often that they cost more than a fiftieth of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from loramux_policies.loop.job import Job
from loramux_runtime.jobs.checkpoint import CheckpointStore
from loramux_runtime.jobs.checkpoint_files import UnreadableError
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_traces.errors import BusyError, StateError

MOST_SHARE: Final = 0.02
"""Largest share of the time that checkpoints may take."""


class Saving:
    """Writes checkpoints of the jobs in memory, running or paused."""

    def __init__(
        self,
        checkpoints: CheckpointStore,
        flush: Callable[[], None],
        training: Mapping[str, TrainingJob],
        every_s: float,
        at_rest: Callable[[str], bool],
        attained_s: Callable[[str], float],
    ) -> None:
        self.checkpoints = checkpoints
        self._flush = flush
        """Commits what is known of the jobs, before a checkpoint has it behind it."""
        self._training = training
        self._every_s = every_s
        self._at_rest = at_rest
        """Returns whether a job's state can be saved now; else after the step that it is in."""
        self._attained_s = attained_s
        """Returns the service that a job has received up to its position."""
        self._left: set[str] | None = None
        """Jobs that the round under way has still to save."""
        self._saved: dict[str, tuple[int, int]] = {}
        """Position of each job's last checkpoint: its step, and the rows done of the next one."""
        self._next_s: float | None = None
        self._cost_s = 0.0
        """Seconds that the last round took."""

    def tidy(self, needed: Collection[str], warn: Callable[[str], None]) -> None:
        """Delete what a killed process has left.

        That is half-written files, and checkpoints of jobs that have ended. What cannot be deleted
        costs only space; the next start tries again.
        """
        try:
            self.checkpoints.sweep()
        except StateError as error:
            warn(str(error))
        for job_id in self.checkpoints.job_ids():
            if job_id not in needed:
                self.forget(job_id, warn)

    def forget(self, job_id: str, warn: Callable[[str], None]) -> None:
        """Delete the checkpoints of a job that has ended."""
        self._saved.pop(job_id, None)
        try:
            self.checkpoints.remove(job_id)
        except StateError as error:
            warn(str(error))

    def read(self, job_id: str, training: TrainingJob, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Bring a state to the job's newest valid checkpoint; return what that says of the job.

        None with no valid one: the job begins again, and the same steps give the same bits. It may
        be called in a thread; `took_up` follows in the one of the loop. Raises UnreadableError
        where the disk did not give one: to begin again would throw away what is there.
        """
        try:
            return self.checkpoints.load(job_id, training, warn)
        except UnreadableError:
            raise
        except StateError as error:
            warn(f"{error}; {job_id} begins again at its first step")
            return None

    def has_some(self, job_id: str) -> bool:
        """Return whether anything bears the name of a checkpoint of the job, or may do so."""
        try:
            return self.checkpoints.newest(job_id) is not None
        except StateError:
            return True

    def took_up(self, job: Job, training: TrainingJob, found: Mapping[str, Any] | None) -> None:
        """Note that the job goes on from a state that was read."""
        if found is not None:
            self._saved[job.job_id] = (training.step, training.rows_done)
            job.attained_s = float(found["attained_s"])
        else:
            self._saved.pop(job.job_id, None)
            job.attained_s = 0.0
        job.done_steps = training.progress_steps

    def load(self, job: Job, training: TrainingJob, warn: Callable[[str], None]) -> None:
        """Bring a job to its newest valid checkpoint, if it has one (`read`)."""
        self.took_up(job, training, self.read(job.job_id, training, warn))

    def due(self, now_s: float) -> bool:
        """Return whether a round of checkpoints is due."""
        if self._next_s is None:
            self._next_s = now_s + self._every_s
        return now_s >= self._next_s

    def save_due(self, now_s: float) -> list[tuple[str, str]]:
        """Save every job that has moved on; return those that could not be saved, and why.

        Of several devices those jobs are saved that are in no step, the others at a later boundary.
        """
        began = time.monotonic()
        if self._left is None:
            self._left, self._cost_s = set(self._training), 0.0
        ready = {job_id for job_id in self._left & self._training.keys() if self._to_save(job_id)}
        busy = {job_id for job_id in ready if not self._at_rest(job_id)}
        try:
            failed = self._save(ready - busy)
        except BusyError:
            # the records cannot be committed now: the round comes later
            return []
        self._left = busy
        self._cost_s += time.monotonic() - began
        if not busy:
            self._left = None
            self._next_s = now_s + max(self._every_s, self._cost_s / MOST_SHARE)
        return failed

    def save_all(self) -> list[tuple[str, str]]:
        """Save every job that has moved on, whether or not that is due.

        Jobs of a device that is in a step stay as they were last saved. Raises BusyError where
        their records cannot be committed.
        """
        return self._save({job_id for job_id in self._training if self._to_save(job_id) and self._at_rest(job_id)})

    def _to_save(self, job_id: str) -> bool:
        training = self._training[job_id]
        at = (training.step, training.rows_done)
        return self._saved.get(job_id, (0, 0)) != at and not training.finished

    def _save(self, job_ids: Collection[str]) -> list[tuple[str, str]]:
        moved = {job_id: training for job_id, training in self._training.items() if job_id in job_ids}
        if not moved:
            return []
        # the records of every step that a checkpoint has behind it are committed before it exists
        self._flush()
        failed = []
        for job_id, training in moved.items():
            try:
                self.save(job_id, training)
            except StateError as error:
                failed.append((job_id, f"its checkpoint cannot be written: {error}"))
        return failed

    def save_now(self, job_id: str) -> None:
        """Save a job that is about to rest, if it is in memory; StateError where that cannot be."""
        training = self._training.get(job_id)
        if training is not None:
            self._flush()
            self.save(job_id, training)

    def save(self, job_id: str, training: TrainingJob) -> None:
        """Write one job's checkpoint; StateError where it cannot be written."""
        self.checkpoints.save(job_id, training, {"attained_s": self._attained_s(job_id)})
        self._saved[job_id] = (training.step, training.rows_done)
