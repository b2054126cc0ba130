"""This module carries out what users ask of a running scheduler.

It does so at a step boundary, and answers in the same commit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.stepping.driver import StepDriver
from loramux_runtime.jobs.saving import Saving
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.admission import Admission
from loramux_runtime.live.desk import Desk
from loramux_runtime.live.inbox import LiveInbox
from loramux_runtime.live.policy_guard import PolicyGuard
from loramux_runtime.live.quarantine import Quarantine
from loramux_runtime.live.reading.orders import CHANGED
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.job_rows import HELD, OPEN, QUEUED, RUNNING, WAITING, CommandRow, JobRow
from loramux_runtime.live.watch.notes import ON_ITS_WAY
from loramux_traces.errors import LoramuxError, StateError, UsageError
from loramux_traces.results import CANCELLED, REJECTED, UNSCHEDULABLE


class Commands:
    """Carries out commands with the parts of the service that they are about."""

    def __init__(
        self,
        book: Book,
        inbox: LiveInbox,
        *,
        loop: Scheduler,
        driver: StepDriver[TrainingJob],
        desk: Desk,
        guard: PolicyGuard,
        quarantine: Quarantine,
        admission: Admission,
        saving: Saving,
    ) -> None:
        self._book, self._inbox = book, inbox
        self._loop, self._driver, self._desk = loop, driver, desk
        self._guard, self._saving = guard, saving
        self._quarantine, self._admission = quarantine, admission
        self._verbs: dict[str, Callable[[str, str], str]] = {
            "cancel": self._cancel,
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "policy": self._policy,
            "export": self._export,
        }

    def obey(self, command: CommandRow) -> None:
        """Carry out one command; what it changed and its answer are committed together."""
        refused = answer = ""
        failed: PolicyError | None = None
        try:
            verb = self._verbs.get(command["verb"])
            if verb is None:
                raise UsageError(f"no such command: {command['verb']}")
            answer = verb(command["job_id"], command["argument"])
        except LoramuxError as error:
            refused = str(error)
            failed = error if isinstance(error, PolicyError) else None
        self._book.answer(command["seq"], answer, refused)
        self._book.flushed()
        if failed is not None:
            # the policy in charge is broken: the loop has to know
            raise failed

    def _open(self, job_id: str) -> JobRow:
        row = self._book.row(job_id)
        if row["state"] not in OPEN:
            raise self._ended(row)
        return row

    @staticmethod
    def _ended(row: JobRow) -> UsageError:
        return UsageError(f"{row['job_id']} has ended already: {row['state']}")

    def _cancel(self, job_id: str, _: str) -> str:
        row = self._open(job_id)
        job = self._loop.cluster.active.get(job_id)
        if job is not None:
            self._loop.withdraw(job, Event.CANCEL, "cancelled by the user")
        else:
            for part in (self._inbox, self._quarantine, self._admission):
                part.take(job_id)
            self._book.end_apart(job_id, CANCELLED, "cancelled by the user", event=Event.CANCEL)
            if (row["submit_s"] or 0.0) > self._driver.now_s:
                # the job is cancelled before its time
                self._book.set(job_id, finish_s=None)
        self._desk.cancelled(job_id)
        return f"{job_id} is cancelled"

    def _pause(self, job_id: str, _: str) -> str:
        row = self._open(job_id)
        if row["state"] == HELD:
            raise UsageError(f"{job_id} is paused already")
        job = self._loop.cluster.active.get(job_id)
        if job is not None:
            self._loop.withdraw(job, Event.HOLD, "paused by the user")
            try:
                self._driver.settle(job)
                self._saving.save_now(job_id)
            except StateError as error:
                return f"{job_id} is paused, but lost if the scheduler ends: {error}"
        else:
            for part in (self._inbox, self._quarantine, self._admission):
                part.take(job_id)
            self._book.set(job_id, state=HELD, reason="paused by the user", why="paused by the user")
        return f"{job_id} is paused"

    def _resume(self, job_id: str, _: str) -> str:
        row = self._book.row(job_id)
        if row["state"] in (REJECTED, UNSCHEDULABLE) and row["start_s"] is None:
            again = {"data_sha256": None, "micro_batch": None, "drawn_by": None, "finish_s": None}
            self._book.set(job_id, state=QUEUED, reason="", why="", admission_deaths=0, **again)
            self._inbox.put(row, self._driver.now_s)
            return f"{job_id} is looked at again"
        if row["state"] not in OPEN:
            raise self._ended(row)
        if row["state"] != HELD:
            raise UsageError(f"{job_id} is not paused")
        # whoever resumes a job whose data file has changed has it go on with the rows that it has
        trusted = int(bool(row["trusted"]) or CHANGED in row["reason"])
        state = QUEUED if row["start_s"] is None else WAITING
        self._book.set(job_id, state=state, reason="", why="", trusted=trusted, admission_deaths=0)
        self._inbox.put(row, self._driver.now_s)
        return f"{job_id} goes on"

    def _drain(self, _: str, __: str) -> str:
        self._desk.drain()
        self._book.state(draining=True)
        return "no job begins any more; the scheduler ends when those that have begun have ended"

    def _policy(self, _: str, text: str) -> str:
        self._guard.use_policy(text)
        self._book.state(policy_text=text)
        return f"the policy is {text} now"

    def _export(self, job_id: str, target: str) -> str:
        row = self._open(job_id)
        if not self._desk.in_memory(job_id):
            what = "is not in memory until it runs again"
            if not row["progress_steps"]:
                what = "has not been trained yet"
            elif row["state"] == RUNNING:
                what = f"cannot be written yet: {ON_ITS_WAY}"
            raise UsageError(f"{job_id} {what}")
        self._desk.export(job_id, Path(target))
        return f"the adapter of {job_id} as it is now is in {target}"
