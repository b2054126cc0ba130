"""Jobs that were taken off a device in the middle of its step: their state follows when the step has ended."""

from __future__ import annotations

from typing import Any, NamedTuple

from loramux_policies.loop.job import Job
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.training_job import TrainingJob


class Leaver(NamedTuple):
    """On its way from a worker."""

    job: Job
    device_id: int
    ticket: Any
    """Of its state (`WorkerPool.collect`)."""


class Leaving:
    """Those under way, and those of them that have a new device already and join it when they are there.

    As in the simulator (`step_engine`): who is paused in the middle of a step is credited with it.
    """

    def __init__(self) -> None:
        self._leavers: dict[str, Leaver] = {}
        self._held: dict[str, LiveRun[TrainingJob]] = {}

    def add(self, leaver: Leaver) -> None:
        """Its step has not ended."""
        self._leavers[leaver.job.job_id] = leaver

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._leavers

    def of_device(self, device_id: int) -> list[Leaver]:
        """Those whose device this was, in the order in which they left; they are under way no longer."""
        found = [leaver for leaver in self._leavers.values() if leaver.device_id == device_id]
        for leaver in found:
            del self._leavers[leaver.job.job_id]
        return found

    def device_of(self, job_id: str) -> int:
        """Where its state is still."""
        return self._leavers[job_id].device_id

    def hold(self, run: LiveRun[TrainingJob]) -> None:
        """It has a new device."""
        self._held[run.job_id] = run

    def held(self, job_id: str) -> bool:
        """Whether it waits for its state."""
        return job_id in self._held

    def release(self, job_id: str) -> LiveRun[TrainingJob] | None:
        """Its stay on the new device, if it has one."""
        return self._held.pop(job_id, None)
