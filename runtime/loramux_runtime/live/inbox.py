"""This module reads what comes in while the scheduler runs.

Jobs and commands are read from the store at step boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import inf
from typing import Any, Final

from loramux_runtime.live.pace import Pace
from loramux_runtime.live.state.job_rows import HELD, OPEN, QUEUED, CommandRow, JobRow
from loramux_runtime.live.state.moments import between_s, moment, moment_of
from loramux_runtime.live.state.store import Store
from loramux_traces.errors import BusyError

AT_ONCE: Final = 50
"""Most submitted jobs that are read at one boundary while others train."""


class LiveInbox:
    """Serves as the inbox of the step loop (contract: `stepping.inbox.Inbox`).

    `due` takes the row of a job whose time has come, `obey` that of a command; `obeyed` says
    whether a command's answer is only still to be committed, and `submitted` is told when a job
    came, on the scheduler's clock. `lasting`: whether more may come.
    """

    def __init__(
        self,
        store: Store,
        *,
        due: Callable[[JobRow], None],
        obey: Callable[[CommandRow], None],
        obeyed: Callable[[int], bool],
        submitted: Callable[[str, float], None],
        lasting: Callable[[], bool],
        pace: Pace,
        polled: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._pace = store, pace
        self._obeyed, self._set = obeyed, submitted
        self._due, self._obey, self._lasting = due, obey, lasting
        self._polled = polled
        """Called when all that has come is told: the policy is asked next."""
        self._version = -1
        self._seen = 0
        """Number of the last job that was read."""
        self._coming: list[tuple[float, str, JobRow]] = []

    def poll(self, now_s: float) -> None:
        """Read what has come: commands first, in order.

        `cancel` and the job it is for may come together. While jobs train, no more is done at one
        boundary than `Pace` lets.
        """
        self._pace.begin()
        try:
            self._look(now_s)
        except BusyError:
            # another process has locked the queue, readers too: it is looked at again soon
            return
        while self._coming and self._coming[0][0] <= now_s and self._pace.left():
            self._due(heappop(self._coming)[2])
        self._polled()

    def _look(self, now_s: float) -> None:
        # taken before the reading: what comes meanwhile is news again
        version = self._store.version
        if version == self._version:
            return
        # commands are read first: none is seen without the job that it is for
        commands = self._store.open_commands()
        if commands or not self._pace.busy:
            whole = self._read_jobs(now_s, None)
        else:
            whole = self._read_jobs(now_s, AT_ONCE)
        for row in commands:
            if not self._obeyed(row["seq"]):
                self._obey(row)
        if whole:
            self._version = version

    def put(self, row: JobRow, now_s: float) -> None:
        """Have a job come (again), at its time or now."""
        self.take(row["job_id"])
        heappush(self._coming, (max(now_s, row["submit_s"] or 0.0), row["job_id"], row))

    def news(self) -> bool:
        """Return whether another process has written since the last look."""
        try:
            return self._store.version != self._version
        except BusyError:
            return False

    def next_s(self) -> float | None:
        """Return when the next job that is known is submitted; infinity where more may come."""
        if self._coming:
            return self._coming[0][0]
        return inf if self._lasting() else None

    def take(self, job_id: str) -> JobRow | None:
        """Take a job back that has not arrived yet."""
        for position, (_, name, row) in enumerate(self._coming):
            if name == job_id:
                del self._coming[position]
                self._coming.sort()
                return row
        return None

    def _read_jobs(self, now_s: float, most: int | None) -> bool:
        """Read jobs that were submitted since the last look; return whether these were all."""
        # read once: what was submitted together stays together
        now = moment()
        found = self._store.jobs_after(self._seen, most)
        for row in found:
            self._seen = row["seq"]
            if row["state"] in OPEN and row["state"] != HELD:
                submit_s = row["submit_s"]
                if submit_s is None:
                    submit_s = row["submit_s"] = self._submitted_s(row, now_s, now)
                    self._set(row["job_id"], submit_s)
                # a job that had arrived before waits again at once
                when_s = submit_s if row["state"] == QUEUED else min(now_s, submit_s)
                heappush(self._coming, (when_s, row["job_id"], row))
        return most is None or len(found) < most

    @staticmethod
    def _submitted_s(row: JobRow, now_s: float, now: Mapping[str, Any]) -> float:
        """Return the submission time on the scheduler's clock.

        A wall clock that was set meanwhile cannot make it negative or later than now.
        """
        ago_s = between_s(moment_of(row["submitted_at"], row["submitted_unix_s"]), now)
        return float(max(0.0, now_s - ago_s) + row["delay_s"])
