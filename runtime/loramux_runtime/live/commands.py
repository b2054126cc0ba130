"""What users ask of a running scheduler, carried out at a step boundary and answered in the same commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_policies.errors import PolicyError
from loramux_policies.loop.events import Event
from loramux_runtime.live.state.store import HELD, OPEN, QUEUED, WAITING, Row
from loramux_traces.errors import LoramuxError, StateError, UsageError
from loramux_traces.results import CANCELLED, REJECTED, UNSCHEDULABLE

if TYPE_CHECKING:
    from loramux_runtime.live.service import LiveService


class Commands:
    """Carries out commands on the service."""

    def __init__(self, service: LiveService) -> None:
        self._service = service
        self._verbs: dict[str, Callable[[str, str], str]] = {
            "cancel": self._cancel,
            "pause": self._pause,
            "resume": self._resume,
            "drain": self._drain,
            "policy": self._policy,
            "export": self._export,
        }

    def obey(self, command: Row) -> None:
        """Carry out one command; what it changed and its answer are committed together."""
        service = self._service
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
        service.book.flush(lambda: service.store.answer(command["seq"], answer, refused=refused))
        if failed is not None:  # the policy in charge is broken: the loop has to know
            raise failed

    def _row(self, job_id: str) -> Row:
        self._service.book.flush()
        return self._service.store.job(job_id)

    def _open(self, job_id: str) -> Row:
        row = self._row(job_id)
        if row["state"] not in OPEN:
            raise self._ended(row)
        return row

    @staticmethod
    def _ended(row: Row) -> UsageError:
        return UsageError(f"{row['job_id']} has ended already: {row['state']}")

    def _cancel(self, job_id: str, _: str) -> str:
        service = self._service
        row = self._open(job_id)
        job = service.loop.cluster.active.get(job_id)
        if job is not None:
            service.loop.withdraw(job, Event.CANCEL, "cancelled by the user")
        else:
            service.inbox.take(job_id)
            service.aside.take(job_id)
            service.book.end_apart(job_id, CANCELLED, "cancelled by the user", event=Event.CANCEL)
            if (row["submit_s"] or 0.0) > service.executor.now_s:  # before its time
                service.book.set(job_id, finish_s=None)
        service.cancelled(job_id)
        return f"{job_id} is cancelled"

    def _pause(self, job_id: str, _: str) -> str:
        service = self._service
        row = self._open(job_id)
        if row["state"] == HELD:
            raise UsageError(f"{job_id} is paused already")
        job = service.loop.cluster.active.get(job_id)
        if job is not None:
            service.loop.withdraw(job, Event.HOLD, "paused by the user")
            try:
                service.executor.bring(job)
                service.saving.save_now(job_id)
            except StateError as error:
                return f"{job_id} is paused, but lost if the scheduler ends: {error}"
        else:
            service.inbox.take(job_id)
            service.aside.take(job_id)
            service.book.set(job_id, state=HELD, reason="paused by the user", why="paused by the user")
        return f"{job_id} is paused"

    def _resume(self, job_id: str, _: str) -> str:
        service = self._service
        row = self._row(job_id)
        if row["state"] in (REJECTED, UNSCHEDULABLE) and row["start_s"] is None:
            again = {"data_sha256": None, "micro_batch": None, "drawn_by": None, "finish_s": None}
            service.book.set(job_id, state=QUEUED, reason="", why="", **again)
            service.inbox.put(row, service.executor.now_s)
            return f"{job_id} is looked at again"
        if row["state"] not in OPEN:
            raise self._ended(row)
        if row["state"] != HELD:
            raise UsageError(f"{job_id} is not paused")
        service.book.set(job_id, state=QUEUED if row["start_s"] is None else WAITING, reason="", why="")
        service.inbox.put(row, service.executor.now_s)
        return f"{job_id} goes on"

    def _drain(self, _: str, __: str) -> str:
        self._service.drain()
        self._service.store.set_facts(draining=True)
        return "no job begins any more; the scheduler ends when those that have begun have ended"

    def _policy(self, _: str, text: str) -> str:
        self._service.use_policy(text)
        self._service.store.set_facts(policy_text=text)
        return f"the policy is {text} now"

    def _export(self, job_id: str, target: str) -> str:
        service = self._service
        row = self._open(job_id)
        if not service.in_memory(job_id):
            what = "has not been trained yet" if row["start_s"] is None else "is not in memory until it runs again"
            raise UsageError(f"{job_id} {what}")
        service.export(job_id, Path(target))
        return f"the adapter of {job_id} as it is now is in {target}"
