"""This module keeps the steps under way on workers.

It also keeps those that have ended and are not booked yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from loramux_profiles.step_point import AdapterPoint
from loramux_runtime.fused.packing import MicroBatch
from loramux_runtime.live.drive.live_times import LiveTimes
from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_runtime.live.drive.worker import StepReport

Trained = tuple[tuple[AdapterPoint | None, MicroBatch], ...]
"""What a step trains, and on what."""


class Flight(NamedTuple):
    """Holds a step under way on a worker."""

    number: int
    began_s: float
    ends_s: float | None
    """When it is predicted to end; None on a real clock."""
    parts: Trained
    """What the step trains, where it is to be held against the profile; else empty."""


class Flights:
    """Launches steps on a pool's workers and hears of their ends."""

    def __init__(self, pool: WorkerPool, times: LiveTimes, hang_s: float = inf) -> None:
        self._pool, self._times, self._hang_s = pool, times, hang_s
        self._under_way: dict[int, Flight] = {}
        self._launched = 0
        self._landed: deque[tuple[int, StepReport | WorkerDied]] = deque()

    def __contains__(self, device_id: int) -> bool:
        return device_id in self._under_way

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def launch(self, device_id: int, entries: Sequence[tuple[str, int]], predicted_s: float, parts: Trained) -> None:
        """Begin a step of (job, rows of its micro-batch) on a worker."""
        began_s = self._times.now_s()
        self._launched += 1
        ends_s = self._times.ends_s(began_s, predicted_s)
        self._under_way[device_id] = Flight(self._launched, began_s, ends_s, parts)
        self._pool.launch(device_id, entries)

    def first(self) -> tuple[int, float] | None:
        """Return the device whose step is predicted to end first, and when.

        Returns None on a real clock.
        """
        ends = [(flight.ends_s, flight.number, device) for device, flight in self._under_way.items()]
        known = [(end, number, device) for end, number, device in ends if end is not None]
        if not known:
            return None
        ends_s, _, device_id = min(known)
        return device_id, ends_s

    def heard(self, timeout_s: float) -> bool:
        """Return whether a step has ended that is not booked yet, waiting that long for one."""
        if not self._landed:
            found = self._pool.wait(self._under_way.keys(), max(0.0, timeout_s))
            if found is not None:
                self._landed.append(found)
            else:
                self._give_up_the_hung()
        return bool(self._landed)

    def await_first(self) -> None:
        """Wait for the step that ends first, where the clock goes by predictions.

        It waits however long the step really takes.
        """
        first = self.first()
        if first is not None:
            found = self._pool.wait([first[0]], None)
            assert found is not None
            self._landed.append(found)

    def land(self) -> tuple[int, Flight, StepReport | WorkerDied]:
        """Take the first of the steps that have ended.

        On a clock of predictions it is now the predicted end.
        """
        device_id, report = self._landed.popleft()
        flight = self._under_way.pop(device_id)
        if flight.ends_s is not None:
            self._times.wait_until(flight.ends_s, lambda: False)
        return device_id, flight, report

    def drop(self, device_id: int) -> None:
        """Forget the step of a dead worker: nothing is to be heard of it any more."""
        self._under_way.pop(device_id, None)
        self._landed = deque(item for item in self._landed if item[0] != device_id)

    def _give_up_the_hung(self) -> None:
        now_s = self._times.now_s()
        for device_id, flight in self._under_way.items():
            if flight.ends_s is None and now_s - flight.began_s > self._hang_s:
                self._landed.append((device_id, WorkerDied(f"no answer for {self._hang_s:g} s")))
