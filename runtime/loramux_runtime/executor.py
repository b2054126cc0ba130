"""One real device under the decide-apply loop: the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf

import numpy as np
import torch

from loramux_policies.backend import Floats
from loramux_policies.fused_device import FusedDevice
from loramux_policies.job import Job
from loramux_policies.meters import IDLE, Meters
from loramux_policies.policy import Policy
from loramux_policies.scheduler import Scheduler
from loramux_policies.views import FusedStep
from loramux_profiles.work import ROUNDING
from loramux_runtime.faults import NONE, FaultPlan
from loramux_runtime.live_run import LiveRun
from loramux_runtime.memory import MemoryMeter
from loramux_runtime.model import FusedModel
from loramux_runtime.packing import Part
from loramux_runtime.times import RealTimes, Times
from loramux_runtime.training_job import TrainingJob

OnStep = Callable[[FusedStep, float, float], None]
"""Called after a fused step with it, its measured and its predicted seconds."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory: its own class on CUDA, a plain RuntimeError of the allocator on CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


class Executor:
    """Backend of the decide-apply loop (contract: `loramux_policies.backend.Backend`) that trains.

    Joins, leaves and decisions happen at step boundaries only.
    """

    def __init__(
        self,
        model: FusedModel,
        policy: Policy,
        meters: Meters,
        training: dict[str, TrainingJob],
        *,
        times: Times | None = None,
        faults: FaultPlan = NONE,
        on_step: OnStep | None = None,
        on_end: Callable[[Job, TrainingJob], None] | None = None,
    ) -> None:
        self.model = model
        self._training = training
        """By job id; a job's entry is dropped when it has ended."""
        self._meters = meters
        self._times = times or RealTimes()
        self._faults = faults
        self._on_step, self._on_end = on_step, on_end
        self.fused: FusedDevice[LiveRun] = FusedDevice(0, policy, padded=False)
        self.memory = MemoryMeter(model.base.device)
        self._reviews: list[float] = []
        self._watched: dict[str, float] = {}
        self._seconds = 0.0
        """Mean of recent steps, for `finish_s`."""
        self._stopping = False
        self._loop: Scheduler

    # -- what the loop asks for

    @property
    def now_s(self) -> float:
        return self._times.now_s()

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the device; it takes part from the next step on."""
        self._account()
        training = self._training[job.job_id]
        training.optimizer.to(self.model.base.device)
        job.run = LiveRun(job, job.cost_on(0), training)
        training.begin(self.model)
        self.fused.add(job.run)
        self._note_memory()

    def set_share(self, job: Job, share: float) -> None:
        """Jobs with shares below one take turns (`loramux_policies.shares`)."""
        self.fused.reseat()

    def stop(self, job: Job) -> None:
        """Copy the job's state to the host; partial gradients, moments and the data cursor are kept."""
        self._leave(job).training.optimizer.to("cpu")
        self._note_memory()

    def sync(self, job: Job) -> None:
        """Bring `done_steps` and `attained_s` up to date."""
        run: LiveRun = job.run
        steps = run.training.progress_steps
        job.attained_s += (steps - job.done_steps) * run.cost.accumulation * run.cost.solo_step_s
        job.done_steps = steps

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Attained and remaining solo seconds of all running jobs."""
        jobs = list(self._loop.running.values())
        for job in jobs:
            self.sync(job)
        remaining = [self._loop.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(remaining)

    def finish_s(self, job: Job) -> float:
        """Predicted finish if nothing changes: micro-steps left at the recent step time."""
        self.sync(job)
        cost = job.cost_on(0)
        left = max(0.0, job.predicted_steps - job.done_steps) * cost.accumulation
        return self.now_s + left * (self._seconds or cost.solo_step_s)

    def review_at(self, t_s: float) -> None:
        """Call `decide` at the first step boundary from that time on."""
        heappush(self._reviews, t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` at the first step boundary at which the job has attained that much."""
        self._watched[job.job_id] = min(attained_s, self._watched.get(job.job_id, inf))

    # -- the run

    def run(self, loop: Scheduler, arrivals: Iterable[Job]) -> None:
        """Until every job has ended, or `request_stop` was called."""
        self._loop = loop
        coming = iter(arrivals)
        job = next(coming, None)
        while not self._stopping:
            while job is not None and job.spec.submit_s <= self.now_s:
                loop.arrive(job)
                job = next(coming, None)
            if self._reviews and self._reviews[0] <= self.now_s:
                while self._reviews and self._reviews[0] <= self.now_s:
                    heappop(self._reviews)
                loop.review()
            loop.decide()
            self._meters.queue(self.now_s, len(loop.queue))
            if self.fused.runs:
                self._step()
                continue
            upcoming = [self._reviews[0]] if self._reviews and loop.active else []
            if job is not None:
                upcoming.append(job.spec.submit_s)
            if not upcoming:
                break
            self._times.wait_until(min(upcoming))
        self._account()

    def request_stop(self) -> None:
        """End `run` at the next step boundary."""
        self._stopping = True

    def _step(self) -> None:
        fused, loop = self.fused, self._loop
        fused.ledger = loop.fleet[0]
        fused.now_s = self.now_s
        step = fused.next_step()
        predicted_s = fused.cost(step).seconds
        parts = [
            Part(adapter=fused.runs[e.job_id].training.adapter, batch=fused.runs[e.job_id].training.peek(e.rows))
            for e in step.entries
        ]
        began_s = self.now_s
        out_of_memory = False
        try:
            self._faults.reach("step", job_ids=tuple(entry.job_id for entry in step.entries))
            outcomes = self.model.step(parts)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = True
        if out_of_memory:  # outside the except block: its traceback would pin the step's tensors
            self._recover(step)
            return
        for part, outcome in zip(parts, outcomes, strict=True):
            fused.runs[outcome.job_id].training.commit(part.batch, outcome, self.model)
        fused.advance(step)
        self._times.step_ends(predicted_s)
        seconds = self.now_s - began_s
        self._seconds = seconds if self._seconds == 0.0 else 0.9 * self._seconds + 0.1 * seconds
        tokens = sum(part.batch.n_tokens for part in parts)
        self._meters.step(0, tokens, -(-tokens // ROUNDING) * ROUNDING)
        if self._on_step is not None:
            self._on_step(step, seconds, predicted_s)
        for entry in step.entries:
            self._after(fused.runs[entry.job_id])

    def _after(self, run: LiveRun) -> None:
        job, training = run.job, run.training
        if training.diverged:
            self._leave(job)
            self._loop.fail(job, "diverge", training.diverged)
        elif training.finished:
            self._leave(job)
            job.true_steps = job.done_steps
            self._loop.finish(job)
        elif self._watched.get(job.job_id, inf) < inf:
            self.sync(job)
            if job.attained_s >= self._watched[job.job_id]:
                del self._watched[job.job_id]
                self._loop.review()
            return
        else:
            return
        self._note_memory()
        if self._on_end is not None:
            self._on_end(job, training)
        del self._training[job.job_id]

    def _leave(self, job: Job) -> LiveRun:
        """Take the job off the device's books, its figures up to date."""
        self._account()
        self.sync(job)
        self._watched.pop(job.job_id, None)
        job.run = None
        return self.fused.remove(job.job_id)

    def _recover(self, step: FusedStep) -> None:
        """Nothing of the step counts: its jobs begin their optimizer step again (the same rows, so the same bits), and
        the newest leaves.
        """
        self.memory.release()
        for entry in step.entries:
            run = self.fused.runs[entry.job_id]
            run.training.rewind()
            run.advance(0)
        names = {entry.job_id for entry in step.entries}
        newest = [run for run in self.fused.runs.values() if run.job_id in names][-1].job
        self._loop.evict(newest, "the device ran out of memory in a fused step")

    # -- accounts

    def _account(self) -> None:
        self._meters.advance(0, self.now_s, 0.0, IDLE, len(self.fused.runs))

    def _note_memory(self) -> None:
        expected = self._loop.fleet[0].expected if self.fused.runs else 0.0
        self._meters.memory(0, self.now_s, self.memory.peak_bytes() or expected, len(self.fused.runs))
