"""This module is the desk of a live scheduler.

Jobs come in from the state folder, and go out as adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.stepping.driver import StepDriver
from loramux_runtime.jobs.adapter_files import save_adapter
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.policy_guard import PolicyGuard
from loramux_runtime.live.quarantine import Quarantine
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import DRAINING, HELD, OPEN, QUEUED, JobRow
from loramux_runtime.live.state.marker import Marker
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.notes import StatusNotes
from loramux_traces.errors import StateError

OnRecord = Callable[[str, Mapping[str, Any]], None]


class Desk:
    """Takes jobs in, hands their states out, ends them, and commits what is known.

    `base_name` is written into adapters; `facts` are the scheduler's own figures of the moment.
    """

    def __init__(
        self,
        store: Store,
        book: Book,
        roster: Roster,
        saving: Saving,
        training: dict[str, TrainingJob],
        *,
        loop: Scheduler,
        driver: StepDriver[TrainingJob],
        guard: PolicyGuard,
        quarantine: Quarantine,
        notes: StatusNotes,
        marker: Marker,
        clock_s: Callable[[], float],
        facts: Callable[[], Mapping[str, Any]],
        base_name: str,
        warn: Callable[[str], None],
        on_flush: Sequence[Callable[[], None]] = (),
        on_record: OnRecord | None = None,
    ) -> None:
        self._store, self._book, self._roster, self._saving = store, book, roster, saving
        self._training = training
        self._loop, self._driver, self._guard = loop, driver, guard
        self._quarantine, self._notes, self._marker = quarantine, notes, marker
        self._clock_s, self._facts = clock_s, facts
        self._base_name, self._warn = base_name, warn
        self._on_flush, self._on_record = on_flush, on_record
        self.draining = False
        """Whether no job that has not begun may begin."""
        self._finished: list[str] = []
        """Jobs that have ended; their checkpoints are not needed once the end is committed."""

    # -- jobs in

    def due(self, row: JobRow) -> None:
        """Take in a job whose time has come, unless it is taken already or has to be kept apart."""
        row = self._store.job(row["job_id"])
        here = row["job_id"] in self._loop.cluster.active
        if row["state"] not in OPEN or row["state"] == HELD or here:
            return
        if not self._quarantine.keep(row):
            self.arrive(row)

    def arrive(self, row: JobRow) -> bool:
        """Let a job into the loop; return whether it is in the loop now.

        Else it has ended, or waits for its user.
        """
        job_id = row["job_id"]
        # rows may take long to read: that is no sign of a policy that hangs
        self._marker.set("idle")
        self._notes.stale = True
        self._guard.arrives()
        unreadable = None
        if not self.in_memory(job_id):
            unreadable = self._saving.checkpoints.unreadable(job_id)
        if unreadable is not None:
            self._book.hold_apart(job_id, f"its checkpoint cannot be read now: {unreadable}")
            return False
        job = self._roster.job(row)
        if job is not None:
            self._loop.arrive(job)
            return True
        self._book.flush()
        if self._store.job(job_id)["state"] not in OPEN:
            self.cancelled(job_id)
        return False

    def drain(self) -> None:
        """Begin no job any more; end when those that have begun have ended."""
        self.draining = True
        for job in list(self._loop.cluster.active.values()):
            if job.first_start_s < 0:
                self._loop.withdraw(job, Event.HOLD, DRAINING)
                self._book.set(job.job_id, state=QUEUED)
                self._roster.forget(job.job_id)
                self._quarantine.put(self._store.job(job.job_id), DRAINING)
        self._quarantine.drained()

    @property
    def drained(self) -> bool:
        """Whether a drain has nothing left to wait for."""
        return self.draining and not self._loop.cluster.active and not self._quarantine.busy

    # -- states of jobs

    def training_of(self, job: Job) -> TrainingJob:
        """Return the state from the newest valid checkpoint, or from the first step.

        From there the training gives the same bits again.
        """
        training = self._roster.training(job.job_id, self._record)
        self._saving.load(job, training, self._warn)
        self._store.forget_records(job.job_id, training.step)
        return training

    def training_again(self, job: Job) -> TrainingJob:
        """Return the state of a job as it was saved last.

        What was learned since went with the worker, and is learned again.
        """
        self._book.flush()
        training = self.training_of(job)
        self._book.set(job.job_id, step=training.step, tokens=training.tokens)
        return training

    def _record(self, job_id: str, record: dict[str, Any]) -> None:
        row = {"t_s": self._clock_s(), "job_id": job_id, **record}
        self._book.record(job_id, row)
        if self._on_record is not None:
            self._on_record(job_id, row)

    def attained_s(self, job_id: str) -> float:
        """Return the service that the job has received by now."""
        job = self._loop.cluster.active.get(job_id)
        if job is None:
            return self._book.attained_s(job_id)
        if job_id in self._loop.cluster.running:
            self._driver.sync(job)
        return job.attained_s

    def in_memory(self, job_id: str) -> bool:
        """Return whether the job has a training state."""
        return job_id in self._training

    # -- jobs out

    def hold(self, job_id: str, reason: str) -> None:
        """Pause a job whose state cannot be saved: it must not go on as if it could."""
        self._warn(f"{job_id} is paused: {reason}")
        job = self._loop.cluster.active.get(job_id)
        if job is not None:
            self._loop.withdraw(job, Event.HOLD, reason)

    def ended(self, job: Job, training: TrainingJob) -> None:
        """Write the adapter of a job that has ended by itself.

        The job is done when the adapter is on the disk.
        """
        self._book.set(job.job_id, step=training.step, tokens=training.tokens)
        if not training.diverged:
            training.optimizer.to("cpu")
            try:
                self.export(job.job_id, self._store.folder / "adapters" / job.job_id)
            except StateError as error:
                self._unfinished(job, training, str(error))
                return
        self._finished.append(job.job_id)
        self._roster.forget(job.job_id)

    def _unfinished(self, job: Job, training: TrainingJob, reason: str) -> None:
        """Pause a job whose adapter cannot be written; `resume` tries again."""
        self._warn(f"{job.job_id} is paused: {reason}")
        self._book.unfinish(job, reason)
        self._roster.forget(job.job_id)
        # its records come before the checkpoint that has them behind it
        self._book.flush()
        try:
            self._saving.save(job.job_id, training)
        except StateError:
            # the job then goes on from its last checkpoint: the same bits again
            self._warn(f"{job.job_id}: nor can its checkpoint be written")

    def cancelled(self, job_id: str) -> None:
        """Forget a job of which nothing is needed any more."""
        self._notes.stale = True
        self._training.pop(job_id, None)
        self._finished.append(job_id)
        self._roster.forget(job_id)

    def export(self, job_id: str, folder: Path) -> None:
        """Write the adapter of a job in memory as it is now; StateError where that cannot be."""
        job = self._loop.cluster.active.get(job_id)
        if job is not None:
            self._driver.settle(job)
        save_adapter(self._training[job_id].adapter, folder, self._base_name, overwrite=True)

    # -- what is known

    def flush(self) -> None:
        """Commit everything that is known."""
        self._notes.note(self._driver.now_s)
        self._book.flush(now_s=self._clock_s(), now_unix_s=time.time(), **self._facts())
        for job_id in self._finished:
            self._saving.forget(job_id, self._warn)
            self._notes.forget(job_id)
            self._book.forget(job_id)
        self._finished.clear()
        for call in self._on_flush:
            call()
