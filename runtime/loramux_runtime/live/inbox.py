"""This module reads what comes in while the scheduler runs.

Jobs and commands are read from the store at step boundaries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from loramux_runtime.live.state.job_rows import HELD, OPEN, QUEUED, CommandRow, JobRow
from loramux_runtime.live.state.store import Store


class LiveInbox:
    """Serves as the inbox of the step loop (contract: `stepping.inbox.Inbox`).

    `due` takes the row of a job whose time has come, `obey` that of a command. `lasting`: whether
    more may come.
    """

    def __init__(
        self,
        store: Store,
        *,
        due: Callable[[JobRow], None],
        obey: Callable[[CommandRow], None],
        lasting: Callable[[], bool],
        polled: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._due, self._obey, self._lasting = due, obey, lasting
        self._polled = polled
        """Called when all that has come is told: the policy is asked next."""
        self._version = -1
        self._seen = 0
        """Number of the last job that was read."""
        self._coming: list[tuple[float, str, JobRow]] = []

    def poll(self, now_s: float) -> None:
        """Read what has come: commands first, in order.

        `cancel` and the job it is for may come together.
        """
        # taken before the reading: what comes meanwhile is news again
        version = self._store.version
        if version != self._version:
            # both are read at one moment: no command is seen without the job that it is for
            with self._store.transaction():
                self._read_jobs(now_s)
                commands = self._store.open_commands()
            for row in commands:
                self._obey(row)
            self._version = version
        while self._coming and self._coming[0][0] <= now_s:
            self._due(heappop(self._coming)[2])
        self._polled()

    def put(self, row: JobRow, now_s: float) -> None:
        """Have a job come (again), at its time or now."""
        self.take(row["job_id"])
        heappush(self._coming, (max(now_s, row["submit_s"] or 0.0), row["job_id"], row))

    def news(self) -> bool:
        """Return whether another process has written since the last look."""
        return self._store.version != self._version

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

    def _read_jobs(self, now_s: float) -> None:
        # read once: what was submitted together stays together
        now_unix_s = time.time()
        for row in self._store.jobs_after(self._seen):
            self._seen = row["seq"]
            if row["state"] in OPEN and row["state"] != HELD:
                submit_s = row["submit_s"]
                if submit_s is None:
                    submit_s = row["submit_s"] = self._submitted_s(row, now_s, now_unix_s)
                    self._store.update(row["job_id"], submit_s=submit_s)
                # a job that had arrived before waits again at once
                when_s = submit_s if row["state"] == QUEUED else min(now_s, submit_s)
                heappush(self._coming, (when_s, row["job_id"], row))

    @staticmethod
    def _submitted_s(row: JobRow, now_s: float, now_unix_s: float) -> float:
        """Return the submission time on the scheduler's clock.

        A wall clock that was set meanwhile cannot make it negative or later than now.
        """
        ago_s = max(0.0, now_unix_s - row["submitted_unix_s"])
        return float(max(0.0, now_s - ago_s) + row["delay_s"])
