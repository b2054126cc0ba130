"""This module counts the workers that died.

It knows how often, how, and whether they are up again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_traces.errors import HardwareMissingError

RESTARTS: Final = 5
WINDOW_S: Final = 600.0
"""Bounds on restarts: a worker is started again so many times in so long.

Then its device is given up.
"""


class WorkerRestarts:
    """Starts dead workers again, within bounds."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._how: dict[int, str] = {}
        """How each worker that is down died."""
        self._starting: set[int] = set()
        self._deaths: defaultdict[int, deque[float]] = defaultdict(deque)

    def down(self, worker: int) -> bool:
        """Return whether the worker is dead, or not up yet."""
        return worker in self._how

    def how(self, worker: int) -> str:
        """Return how the worker died."""
        return self._how[worker]

    @property
    def expecting(self) -> bool:
        """Whether a worker is about to come up."""
        return bool(self._starting)

    def died(self, worker: int, how: str, now_s: float) -> None:
        """Note that the worker has died, how and when."""
        self._how[worker] = how
        self._starting.discard(worker)
        self._deaths[worker].append(now_s)

    def restart(self, worker: int) -> None:
        """Start a new worker in the place of a dead one, or give its device up.

        HardwareMissingError where no device is left.
        """
        deaths = self._deaths[worker]
        while deaths and deaths[-1] - deaths[0] > WINDOW_S:
            deaths.popleft()
        if len(deaths) <= RESTARTS:
            self._pool.restart(worker)
            self._starting.add(worker)
        elif len(self._how) == self._pool.size and not self._starting:
            raise HardwareMissingError(
                f"every worker has died more than {RESTARTS} times in {WINDOW_S / 60:.0f} minutes; "
                f"the last: {self._how[worker]}"
            )

    def up(self, now_s: float) -> list[tuple[int, str]]:
        """Return the workers that have come up since the last look, and where they are."""
        found = []
        for worker in sorted(self._starting):
            try:
                about = self._pool.ready(worker)
            except WorkerDied as death:
                self.died(worker, str(death), now_s)
                self.restart(worker)
                continue
            if about is not None:
                self._starting.discard(worker)
                del self._how[worker]
                found.append((worker, f"{about.device} on {about.node}, process {about.pid}"))
        return found
