"""This module keeps the books of a run of fused steps.

They say who is on which device and in which step, and how far each job is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

import numpy as np

from loramux_policies.loop.cluster import Cluster
from loramux_policies.loop.job import Job
from loramux_policies.policy import Policy
from loramux_policies.stepping.contracts import StepDevice
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_traces.arrays import Floats


class Residents(Generic[P]):
    """Holds the residents of every device, and what ended steps have left to be dealt with."""

    def __init__(self, policy: Policy, device_types: Sequence[int] = (0,)) -> None:
        self.devices: list[StepDevice[P]] = [
            StepDevice(FusedDevice(device_id, policy, padded=False), type_index)
            for device_id, type_index in enumerate(device_types)
        ]
        self.now_s = 0.0
        """The instant of the present step boundary."""
        self.cluster: Cluster
        """What the loop knows of the residents; set when the run begins."""
        self.held: dict[str, Job] = {}
        """Residents that cannot join yet: their state is in a step elsewhere, or being made."""
        self.trained: list[LiveRun[P]] = []
        """Residents in a step that has ended; they have not been looked at yet."""
        self.failed: list[tuple[StepDevice[P], list[LiveRun[P]]]] = []
        """Steps that ran out of memory and have not been dealt with yet."""
        self.gone: list[tuple[StepDevice[P], list[LiveRun[P]]]] = []
        """Devices that are gone, with the residents of each one's step; not dealt with yet."""
        self.watched: dict[str, float] = {}
        """Attained service at which the policy asked to be called, by job."""

    def device_of(self, job: Job) -> StepDevice[P]:
        """Return the device of a running job."""
        return self.devices[job.devices[0]]

    def of_device(self, device: StepDevice[P]) -> list[Job]:
        """Return the residents of a device, those that cannot join yet among them."""
        held = [job for job in self.held.values() if self.device_of(job) is device]
        return [run.job for run in device.fused.runs.values()] + held

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` of a running job up to date."""
        if job.job_id not in self.held:  # a held job was credited when it left, or has still to begin
            run: LiveRun[P] = job.run
            self.credit(job, run.training.progress_steps, self.device_of(job).type_index)

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return all running jobs with their attained and remaining solo seconds."""
        jobs = list(self.cluster.running.values())
        for job in jobs:
            self.sync(job)
        remaining = [self.cluster.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(remaining)

    def finish_s(self, job: Job) -> float:
        """Predict a job's finish from its micro-steps left, at its device's recent step time."""
        self.sync(job)
        device = self.device_of(job)
        cost = job.cost_on(device.type_index)
        left = max(0.0, job.predicted_steps - job.done_steps) * cost.accumulation
        return self.now_s + left * (device.seconds or cost.solo_step_s)

    @staticmethod
    def credit(job: Job, steps: float, type_index: int) -> None:
        """Set the job's progress to that many optimizer steps, done on a device of this type."""
        cost = job.cost_on(type_index)
        job.attained_s += (steps - job.done_steps) * cost.accumulation * cost.solo_step_s
        job.done_steps = steps

    def forget(self, job: Job) -> None:
        """Take the job off the books of its device."""
        self.watched.pop(job.job_id, None)
        job.run = None
        if self.held.pop(job.job_id, None) is None:
            self.device_of(job).fused.remove(job.job_id)
