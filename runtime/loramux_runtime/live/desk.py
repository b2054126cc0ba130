"""This module is the desk of a live scheduler.

Jobs come in from the state folder, and go out as adapters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, Final

from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.stepping.contracts import Arrival
from loramux_policies.stepping.driver import StepDriver
from loramux_runtime.jobs.adapter_files import save_adapter
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.admission import Admission
from loramux_runtime.live.policy_guard import PolicyGuard
from loramux_runtime.live.quarantine import Quarantine
from loramux_runtime.live.reading.orders import ReadAnswer
from loramux_runtime.live.reading.row_files import RowFiles
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import DRAINING, HELD, OPEN, QUEUED, JobRow
from loramux_runtime.live.state.marker import Marker
from loramux_runtime.live.state.moments import moment
from loramux_runtime.live.state.retention import EVERY_S, prune
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.notes import StatusNotes
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.errors import StateError
from loramux_traces.filesafe import json_text

TIDY_AFTER: Final = 50
"""Jobs that end before rows that nobody needs are looked for."""
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
        admission: Admission,
        files: RowFiles,
        faults: FaultPlan,
        keep_s: float,
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
        self._admission, self._files, self._faults = admission, files, faults
        self._clock_s, self._facts = clock_s, facts
        self._base_name, self._warn = base_name, warn
        self._on_flush, self._on_record = on_flush, on_record
        self.draining = False
        """Whether no job that has not begun may begin."""
        self._keep_s, self._prune_s = keep_s, 0.0
        self._ended = 0
        """Jobs that have ended since rows were last deleted."""
        self._finished: list[str] = []
        """Jobs that have ended; their checkpoints are not needed once the end is committed."""

    # -- jobs in

    def due(self, row: JobRow) -> None:
        """Have a job taken in whose time has come, unless it is here or has to be kept apart."""
        row = self._book.row(row["job_id"])
        here = row["job_id"] in self._loop.cluster.active or row["job_id"] in self._admission
        if row["state"] not in OPEN or row["state"] == HELD or here:
            return
        if not self._quarantine.keep(row):
            self._admission.put(row)

    def arrive(self, row: JobRow, answer: ReadAnswer | None) -> None:
        """Let a job into the loop with what was read for it.

        Where it cannot be trained it has ended after this, or waits for its user.
        """
        job_id = row["job_id"]
        # what the process does from here on it does for this job: a death is the job's
        self._marker.set("admit", {job_id: row["progress_steps"]})
        self._faults.reach("admit", job_id=job_id)
        self._notes.stale = True
        self._guard.arrives()
        unreadable = None
        if not self.in_memory(job_id):
            unreadable = self._saving.checkpoints.unreadable(job_id)
        if unreadable is not None:
            self._book.hold_apart(job_id, f"its checkpoint cannot be read now: {unreadable}")
            return
        job = self._roster.job(row, answer)
        if job is not None:
            self._book.note({"t_s": self._driver.now_s, "event": "read", "job_id": job_id})
            self._loop.arrive(job)
        elif self._book.row(job_id)["state"] not in OPEN:
            self.cancelled(job_id)

    def drain(self) -> None:
        """Begin no job any more; end when those that have begun have ended."""
        self.draining = True
        for job in list(self._loop.cluster.active.values()):
            if job.first_start_s < 0:
                self._loop.withdraw(job, Event.HOLD, DRAINING)
                self._book.set(job.job_id, state=QUEUED)
                self._roster.forget(job.job_id)
                self._quarantine.put(self._book.row(job.job_id), DRAINING)
        for job_id in self._admission.job_ids():
            row = self._book.row(job_id)
            if row["start_s"] is None:
                self._admission.take(job_id)
                self._quarantine.put(row, DRAINING)
        self._quarantine.drained()

    @property
    def drained(self) -> bool:
        """Whether a drain has nothing left to wait for."""
        return self.draining and not (self._loop.cluster.active or self._quarantine.busy or len(self._admission))

    # -- states of jobs

    def record(self, job_id: str, record: dict[str, Any]) -> None:
        """Book one training record of a job, and hand it on."""
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
        job = self._loop.cluster.active.get(job_id)
        if job is not None:  # else it is paused already, and its state is tried again in each round
            self._warn(f"{job_id} is paused: {reason}")
            self._loop.withdraw(job, Event.HOLD, reason)

    def without_state(self, job: Job, arrival: Arrival) -> None:
        """Take a job off that has started and whose state cannot be had.

        It fails where nothing of it can be lost; else it waits for its user.
        """
        reason = f"its state cannot be made or read: {arrival.fault}"
        if job.done_steps > 0 or self._saving.has_some(job.job_id):
            self.hold(job.job_id, reason)
            return
        self._loop.withdraw(job, Event.FAIL if arrival.out_of_memory else Event.CRASH, reason)
        if not arrival.out_of_memory:  # a FAIL is told to the host
            self.cancelled(job.job_id)

    def ended(self, job: Job, training: TrainingJob) -> None:
        """Write the adapter of a job that has ended by itself.

        The job is done when the adapter is on the disk.
        """
        self._book.set(job.job_id, step=training.step, tokens=training.tokens)
        if self._book.folder is not None:
            # nothing is made anew in the place of a folder that is gone
            self._book.folder.check()
        if training.out_of_memory:
            # the loop has told so, and `cancelled` has forgotten it
            return
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
        try:
            # its records come before the checkpoint that has them behind it
            self._book.flush()
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
        for job_id, why in self._admission.why().items():
            self._book.set(job_id, why=why)
        now = moment()
        self._book.flush(now_s=self._clock_s(), now_unix_s=now["unix_s"], now_at=json_text(now), **self._facts())
        for job_id in self._finished:
            self._saving.forget(job_id, self._warn)
            self._notes.forget(job_id)
            self._book.forget(job_id)
        self._prune()
        self._ended += len(self._finished)
        self._finished.clear()
        if self._ended >= TIDY_AFTER and not len(self._admission):
            self.tidy_rows()
        for call in self._on_flush:
            call()

    def _prune(self) -> None:
        """Delete what is known of jobs that ended long ago, every hour."""
        now_s = self._clock_s()
        if now_s < self._prune_s or self._keep_s == inf:
            return
        self._prune_s = now_s + EVERY_S
        prune(self._store, now_s - self._keep_s)

    def tidy_rows(self) -> None:
        """Delete the rows that no job needs any more.

        Not while rows are read: they may be those that are being written.
        """
        self._ended = 0
        open_rows = [json.loads(row["kept"]) for row in self._store.jobs(*OPEN) if row["kept"] is not None]
        needed = [part for kept in open_rows for part in kept.values() if part is not None]
        self._files.tidy([*needed, *self._roster.kept()])
