"""This module keeps the jobs that were taken off a device in the middle of its step.

Their state follows when the step has ended.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from loramux_policies.loop.job import Job


class Leaver(NamedTuple):
    """Holds a job on its way from a worker."""

    job: Job
    device_id: int
    ticket: Any
    """Ticket for the job's state (`WorkerPool.collect`)."""


class Departures:
    """Holds the jobs whose state has still to come from a step that they have left.

    As in the simulator (`step_engine`), a job that is paused in the middle of a step is credited
    with it.
    """

    def __init__(self) -> None:
        self._leavers: dict[str, Leaver] = {}

    def add(self, leaver: Leaver) -> None:
        """Note a job whose step has not ended."""
        self._leavers[leaver.job.job_id] = leaver

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._leavers

    def of_device(self, device_id: int) -> list[Leaver]:
        """Take out the leavers whose device this was, in the order in which they left."""
        found = [leaver for leaver in self._leavers.values() if leaver.device_id == device_id]
        for leaver in found:
            del self._leavers[leaver.job.job_id]
        return found
