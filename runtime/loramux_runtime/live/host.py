"""This module says what follows from the events of a live run.

That is saving, committing, watching, and what the dead leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.stepping.contracts import Arrival, Host, StepDevice
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.admission import Admission
from loramux_runtime.live.desk import Desk
from loramux_runtime.live.drive.workforce import Workforce
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.policy_guard import PolicyGuard
from loramux_runtime.live.quarantine import Quarantine
from loramux_runtime.live.roster import Roster
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import OPEN
from loramux_runtime.live.state.marker import Marker
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.suspects import Suspects
from loramux_runtime.live.watch.notes import StatusNotes
from loramux_runtime.train.accounts import Accounts
from loramux_traces.errors import BusyError

RETRY_S: Final = 1.0
"""Seconds between two tries to write a queue whose lock another process holds."""
PLAY_S: Final = 0.25
"""Seconds that training waits for that lock the first time: a command holds it for milliseconds."""
BRIEF_S: Final = 0.02
"""Seconds that each later try waits for it."""
IDLE_FLUSH_S: Final = 5.0
"""Seconds between two commits of an idle scheduler, which say that it is there."""
Watch = Callable[[float], float | None]
"""Takes the time now in seconds; returns the bytes that the jobs may use from now on.

It returns None where that has not changed.
"""


class LiveHost(Host[TrainingJob]):
    """Answers the driver of a live run, with the parts of the service."""

    def __init__(
        self,
        store: Store,
        book: Book,
        loop: Scheduler,
        training: dict[str, TrainingJob],
        *,
        accounts: Accounts,
        desk: Desk,
        guard: PolicyGuard,
        quarantine: Quarantine,
        roster: Roster,
        saving: Saving,
        suspects: Suspects,
        notes: StatusNotes,
        marker: Marker,
        inbox: LiveInbox,
        admission: Admission,
        workforce: Workforce | None,
        clock_s: Callable[[], float],
        request_stop: Callable[[], None],
        after_policy: Callable[[], None],
        flush_s: float,
        capacity_bytes: float,
        watch: Watch | None,
        warn: Callable[[str], None],
    ) -> None:
        self._store, self._book, self._loop, self._training = store, book, loop, training
        self._accounts, self._desk, self._guard = accounts, desk, guard
        self._quarantine, self._roster, self._saving = quarantine, roster, saving
        self._suspects, self._notes, self._marker, self._inbox = suspects, notes, marker, inbox
        self._admission = admission
        self._workforce = workforce
        self._clock_s, self._request_stop, self._after_policy = clock_s, request_stop, after_policy
        self._flush_s, self._watch, self._warn = flush_s, watch, warn
        self.capacity_bytes = capacity_bytes
        """Bytes that the jobs on one device may use."""
        self._unsaved_s: float | None = None
        """Since when another process's lock has kept the queue from being written."""
        self._retry_s = 0.0
        self.worker_deaths: int = store.fact("worker_deaths", 0)

    def facts(self) -> dict[str, Any]:
        """Return what the scheduler says of its devices."""
        return {"capacity_bytes": int(self.capacity_bytes), "worker_deaths": self.worker_deaths}

    # -- residents

    def residents_change(self, device: StepDevice[TrainingJob]) -> None:
        """Account for the time up to now.

        The device's memory so far is that of its residents so far.
        """
        self._accounts.residents_change(device)
        self._notes.note_memory()
        self._notes.stale = True

    def joined(self, run: LiveRun[TrainingJob]) -> None:
        """Note the device's memory with the new resident."""
        self._accounts.note_memory(run.job.devices[0])

    def without_state(self, job: Job, arrival: Arrival) -> None:
        """Have the desk take the job off."""
        self._desk.without_state(job, arrival)

    def stopped(self, device: StepDevice[TrainingJob]) -> None:
        """Note the device's memory without the job."""
        self._accounts.note_memory(device.fused.device_id)

    def ended(self, run: LiveRun[TrainingJob]) -> None:
        """Hand the job to the desk, and forget it."""
        self._desk.ended(run.job, run.training)
        self._training.pop(run.job_id, None)

    # -- between steps

    def boundary(self) -> bool:
        """Save and commit what is due; return whether the loop must decide again."""
        now_s = self._loop.backend.now_s
        self._after_policy()
        self._accounts.note_queue()
        again = self._look_at_memory()
        again = self._guard.boundary(now_s) or again
        again = self._quarantine.turn() or again
        if self._saving.due(now_s) and self._commit(now_s):
            self._marker.set("save")
            for job_id, reason in self._saving.save_due(now_s):
                self._desk.hold(job_id, reason)
                again = True
        if self._book.urgent or now_s - self._book.committed_s >= self._flush_s:
            self._commit(now_s)
        # what is held is counted in the store, and so this comes after the commit
        self._notes.sample_if_stale()
        if self._desk.drained and self._unsaved_s is None:
            self._request_stop()
        self._marker.set("decide")
        return again

    def news(self) -> bool:
        """Return whether an idle device has reason to stop waiting."""
        self._marker.set("idle")
        now_s = self._clock_s()
        if now_s - self._book.committed_s >= IDLE_FLUSH_S or (self._book.urgent and self._unsaved_s is not None):
            self._commit(now_s)
        waits = self._inbox.news() or self._look_at_memory() or self._guard.stall_due(self._clock_s())
        return self._admission.news() or waits

    def _commit(self, now_s: float) -> bool:
        """Commit what is known, and return whether that is done.

        While another process holds the queue's lock, training goes on.
        """
        if self._unsaved_s is not None and now_s < self._retry_s:
            return False
        try:
            self._desk.flush()
        except BusyError:
            self._retry_s = now_s + RETRY_S
            if self._unsaved_s is None:
                self._unsaved_s = now_s
                self._store.be_patient(BRIEF_S)
                self._marker.unsaved(True)
                self._warn("another process holds the lock of the queue: training goes on, nothing is committed")
            return False
        if self._unsaved_s is not None:
            self._warn(f"the queue is written again, after {now_s - self._unsaved_s:.0f} s")
            self._unsaved_s = None
            self._store.be_patient(PLAY_S)
            self._marker.unsaved(False)
        return True

    def _look_at_memory(self) -> bool:
        changed = None if self._watch is None else self._watch(self._clock_s())
        if changed is None:
            return False
        self.capacity_bytes = changed
        self._book.note({"t_s": self._clock_s(), "event": "capacity", "bytes": changed})
        self._loop.set_capacity(0, changed)
        return True

    def excused(self, error: PolicyError) -> bool:
        """Go on under another policy, unless told otherwise; return whether it does."""
        return self._guard.excused(error)

    def stalled(self) -> bool:
        """Return whether another policy has taken over.

        It takes over from one that leaves an empty device to itself.
        """
        return self._guard.stalled()

    def alone_out_of_memory(self, job: Job) -> Job | None:
        """Halve the rows at a time; the bits are other ones from here on, and the log says so."""
        smaller = self._roster.halved(job)
        if smaller is not None:
            detail = f"{smaller.cost_on(0).rows} rows at a time from now on"
            row = {"event": "split", "job_id": job.job_id, "detail": detail}
            self._book.note({"t_s": self._loop.backend.now_s, **row})
        return smaller

    # -- devices that come and go

    @property
    def expecting(self) -> bool:
        """Whether a worker is about to come up."""
        return self._workforce is not None and self._workforce.expecting

    def devices_back(self) -> bool:
        """Return whether a worker has come up."""
        return self._workforce is not None and self._workforce.look()

    def device_gone(self, device: StepDevice[TrainingJob], in_step: Mapping[str, float], *, ending: bool) -> None:
        """Say that a worker died, count it against the jobs of its step, and start another."""
        assert self._workforce is not None
        device_id = device.fused.device_id
        self._mourn(device_id, self._workforce.gone(device_id), in_step)
        if not ending:
            self._workforce.restart(device_id)

    def worker_up(self, device_id: int, where: str) -> None:
        """Log that a worker has come up again, and where."""
        row = {"event": "worker-up", "devices": [device_id], "detail": where}
        self._book.note({"t_s": self._clock_s(), **row})

    def _mourn(self, device_id: int, how: str, in_step: Mapping[str, float]) -> None:
        """Note that a worker died, and make the jobs of its step suspects.

        They would be suspects had this process died, too.
        """
        self.worker_deaths += 1
        self._warn(f"the worker of device {device_id} died: {how}")
        about = {"event": "worker-died", "devices": [device_id], "detail": how}
        self._book.note({"t_s": self._clock_s(), **about})
        rows = [self._book.row(job_id) for job_id in in_step]
        hit = (row for row in rows if row["state"] in OPEN)
        # a worker may be killed from outside, and nobody here learns how it died
        for row in self._suspects.blame(hit, in_step, self._book.set, by_work=False):
            job_id = row["job_id"]
            job = self._loop.cluster.active.get(job_id)
            if job is None or not self._suspects.alone(row):
                continue
            if self._suspects.hopeless(row, alone=len(in_step) == 1):
                self._loop.withdraw(job, Event.CRASH, self._suspects.reason(row))
                self._desk.cancelled(job_id)
            else:
                why = "runs alone: its worker died in its steps"
                self._loop.withdraw(job, Event.LOST, why)
                self._quarantine.put(row, why)

    # -- what the loop tells

    def hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        """Note one event of the loop (`scheduler.Listener`)."""
        self._book.hear(event, job, devices, detail)
        self._notes.changed(job.job_id)
        if event in (Event.FAIL, Event.REJECT):
            # the other ends are told to `ended`, or come from `Desk.cancelled`
            self._desk.cancelled(job.job_id)
