"""This module writes into the state folder what the loop does to jobs.

That is their rows, the event log, and what they learned. It is kept in memory between step
boundaries and committed in one transaction: at once where a job changed its state, else once a
second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from loramux_policies.loop.events import BEGINS, FINAL_STATE, Event
from loramux_policies.loop.job import Job
from loramux_runtime.live.state.job_rows import HELD, RUNNING, WAITING, Fields, JobRow
from loramux_runtime.live.state.same_folder import SameFolder, stamp
from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_traces.errors import BusyError

RETURN: Final = "return"
"""Name of the event by which a job that has begun arrives again.

It is `Event.ARRIVE` in the log of a scheduler that knew the job before.
"""
GONE: Final[Fields] = {"expected_finish_s": None, "tokens_per_s": None}
"""Columns of a job that is on no device."""


class Book:
    """Listens to the decide-apply loop (`scheduler.Listener`) and keeps the store true.

    While a scheduler runs it alone writes to the store, so that a lock that another process holds
    delays one commit and stops nothing.
    """

    def __init__(self, store: Store, now_s: Callable[[], float], faults: FaultPlan = NONE) -> None:
        self._store = store
        self._now_s = now_s
        self._faults = faults
        self._rows: dict[str, Fields] = {}
        self._events: list[Fields] = []
        self._records: list[tuple[str, Fields]] = []
        self._samples: list[tuple[float, int, float, int, int]] = []
        self._answers: dict[int, tuple[str, str]] = {}
        self._facts: Fields = {}
        self._forgotten: dict[str, int] = {}
        self.folder: SameFolder | None = None
        """Notices that the folder is another one; None before the scheduler has begun."""
        self._attained_s: dict[str, float] = {}
        self.urgent = False
        """Whether a job has changed its state since the last commit."""
        self.committed_s = float("-inf")
        self.counts = {Event.OOM: 0, Event.PAUSE: 0, Event.LOST: 0}
        """Events of this process, counted."""

    # -- what happens

    def hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        """Note one event of the loop."""
        now_s = self._now_s()
        if event in self.counts:
            self.counts[event] += 1
        values = self.figures(job)
        self._attained_s[job.job_id] = job.attained_s
        name = str(event)
        if event == Event.ARRIVE:
            values["state"] = WAITING
            name = name if job.first_start_s < 0 else RETURN
        elif event in BEGINS:
            values |= {"state": RUNNING, "start_s": job.first_start_s, "why": "", "reason": ""}
            values["devices"] = "+".join(map(str, devices))
        elif event in (Event.PAUSE, Event.OOM, Event.LOST):
            values |= {"state": WAITING, "stopped_s": now_s, "reason": detail, **GONE}
        elif event == Event.HOLD:
            values |= {"state": HELD, "stopped_s": now_s, "reason": detail, "why": detail, **GONE}
        elif event in FINAL_STATE:
            self._end(values, job, devices)
            values |= {"state": FINAL_STATE[event], "finish_s": now_s, "reason": detail, "why": "", **GONE}
        self.set(job.job_id, **values)
        row: Fields = {"t_s": now_s, "event": name, "job_id": job.job_id}
        if devices:
            row["devices"] = list(devices)
        if detail:
            row["detail"] = detail
        self._events.append(row)
        # a job that has only come is as safe as it was: a thousand of them are no thousand commits
        self.urgent = self.urgent or event != Event.ARRIVE

    @staticmethod
    def figures(job: Job) -> Fields:
        """Return the columns that follow from the loop's record of a job."""
        return {
            "progress_steps": job.done_steps,
            "attained_s": job.attained_s,
            "paused_s": job.paused_s,
            "preemptions": job.preemptions,
            "oom_events": job.oom_events,
        }

    @staticmethod
    def _end(values: Fields, job: Job, devices: tuple[int, ...]) -> None:
        cost = next(cost for cost in job.costs if cost is not None)
        values["solo_s"] = job.true_steps * cost.accumulation * cost.solo_step_s

    def end_apart(self, job_id: str, state: str, reason: str, *, event: str = "") -> None:
        """End a job that the loop does not have.

        It is unschedulable, with data that cannot be used, or held. `event`: the state's name in
        small letters where nothing is said.
        """
        now_s = self._now_s()
        self.set(job_id, state=state, reason=reason, why="", finish_s=now_s, **GONE)
        self._events.append({"t_s": now_s, "event": event or state.lower(), "job_id": job_id, "detail": reason})
        self.urgent = True

    def hold_apart(self, job_id: str, reason: str) -> None:
        """Hold a job that has begun and that the loop does not have; it waits for its user."""
        self.set(job_id, state=HELD, reason=reason, why=reason, **GONE)
        self._events.append({"t_s": self._now_s(), "event": Event.HOLD, "job_id": job_id, "detail": reason})
        self.urgent = True

    def unfinish(self, job: Job, reason: str) -> None:
        """Hold a job that has just finished and is not done after all."""
        event = {"event": Event.FINISH, "job_id": job.job_id}
        last = max(i for i, row in enumerate(self._events) if event.items() <= row.items())
        self._events[last] |= {"event": Event.HOLD, "detail": reason}
        held = {"state": HELD, "reason": reason, "why": reason, "finish_s": None, "stopped_s": self._now_s()}
        self.set(job.job_id, **held, **GONE)

    def note(self, row: Fields) -> None:
        """Note one row of the event log that is no event of the loop."""
        self._events.append(row)

    def record(self, job_id: str, row: Fields) -> None:
        """Note one training record of a job."""
        self._records.append((job_id, row))
        self.set(job_id, step=row["step"], loss=row["loss"], tokens=row["tokens"], total_steps=row["total_steps"])

    def sample(self, device_id: int, memory_bytes: float, residents: int, waiting: int) -> None:
        """Note the memory and residents of a device from now on, and the jobs that wait."""
        self._samples.append((self._now_s(), device_id, memory_bytes, residents, waiting))

    def set(self, job_id: str, **values: Any) -> None:
        """Set columns of a job from the next commit on."""
        self._rows.setdefault(job_id, {}).update(values)

    def attained_s(self, job_id: str) -> float:
        """Return the service that a job has received, as last heard."""
        return self._attained_s.get(job_id, 0.0)

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended, where that is committed."""
        self._attained_s.pop(job_id, None)

    def row(self, job_id: str) -> JobRow:
        """Return one job as it is by now, committed or not; UsageError where there is none."""
        return cast(JobRow, {**self._store.job(job_id), **self._rows.get(job_id, {})})

    def answer(self, number: int, answer: str, refused: str) -> None:
        """Answer a command; it is committed with what the command has changed."""
        self._answers[number] = answer, refused

    def answered(self, number: int) -> bool:
        """Return whether a command that the store still has as open has been carried out."""
        return number in self._answers

    def state(self, **facts: Any) -> None:
        """Set facts of the scheduler from the next commit on."""
        self._facts.update(facts)

    def forget_records(self, job_id: str, after_step: int) -> None:
        """Drop the training records of steps that will be trained again."""
        self._records = [(name, row) for name, row in self._records if name != job_id or row["step"] <= after_step]
        self._forgotten[job_id] = min(after_step, self._forgotten.get(job_id, after_step))

    # -- committing

    def flush(self, **facts: Any) -> None:
        """Commit everything, with these facts of the scheduler.

        Where that fails nothing is forgotten. Raises BusyError where another process holds the
        queue's lock, FolderGone where the folder is another one by now.
        """
        store = self._store
        if self.folder is not None:
            self.folder.check()
        self._faults.reach("commit", stage="before")
        with store.transaction():
            stamp(store)
            for job_id, after_step in self._forgotten.items():
                store.forget_records(job_id, after_step)
            for job_id, values in self._rows.items():
                store.update(job_id, **values)
            store.add_records(self._records)
            store.add_events(self._events)
            store.add_samples(self._samples)
            if facts or self._facts:
                store.set_facts(**{**self._facts, **facts})
            for number, (answer, refused) in self._answers.items():
                store.answer(number, answer, refused=refused)
        self._faults.reach("commit", stage="after")
        for pending in (self._forgotten, self._rows, self._records, self._events, self._samples):
            pending.clear()
        self._answers.clear()
        self._facts.clear()
        if facts:
            # else the scheduler's own figures are still to come
            self.urgent = False
            self.committed_s = float(facts.get("now_s", self._now_s()))

    def flushed(self) -> bool:
        """Commit everything if that can be done now; return whether it is committed."""
        try:
            self.flush()
        except BusyError:
            return False
        return True
