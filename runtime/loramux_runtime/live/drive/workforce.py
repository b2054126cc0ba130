"""This module keeps the loop informed of a pool's devices.

A device that is down has no memory, one that is up has all of it again.
"""

from __future__ import annotations

from collections.abc import Callable

from loramux_policies.loop.scheduler import Scheduler
from loramux_runtime.live.drive.live_times import LiveTimes
from loramux_runtime.live.drive.worker_restarts import WorkerRestarts


class Workforce:
    """Starts dead workers again and tells the loop what it can count on.

    `up` is told of each worker that has come up, and where it is.
    """

    def __init__(self, restarts: WorkerRestarts, times: LiveTimes, up: Callable[[int, str], None]) -> None:
        self._restarts, self._times, self._up = restarts, times, up
        self._capacity: dict[int, float] = {}
        """Memory capacity of each device that is down."""
        self.loop: Scheduler
        """The loop; whoever has made it sets this."""

    @property
    def expecting(self) -> bool:
        """Whether a worker is about to come up."""
        return self._restarts.expecting

    def gone(self, device_id: int) -> str:
        """Take the device's memory away from the loop; return how its worker died."""
        capacity = self.loop.cluster.fleet[device_id].capacity
        self._capacity[device_id] = self._capacity.get(device_id) or capacity
        self.loop.set_capacity(device_id, 0.0)
        return self._restarts.how(device_id)

    def restart(self, device_id: int) -> None:
        """Start a new worker in the place of a dead one, within bounds."""
        self._restarts.restart(device_id)

    def look(self) -> bool:
        """Return whether a worker has come up; the loop has its memory again."""
        found = self._restarts.up(self._times.now_s())
        for device_id, where in found:
            self.loop.set_capacity(device_id, self._capacity.pop(device_id))
            self._up(device_id, where)
        return bool(found)
