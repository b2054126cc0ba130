"""Simulate at step fidelity: every fused step is an event with its real lengths and padding.

This is the SimPy backend for small traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import IDLE, Meters
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.stepping.shares import phi_at
from loramux_policies.views import FusedStep
from loramux_simulator.clock import Clock
from loramux_simulator.micro_batches import ReadyRun
from loramux_simulator.rate_device import beyond_memory
from loramux_traces.arrays import Floats

STEP_SLACK = 1e-9
"""In micro-steps: a fractional last one that small is rounding, not work."""


class StepDevice:
    """A StepDevice is one device and the step it is in."""

    __slots__ = ("bases", "busy", "ends_s", "fused", "held", "seconds", "stall_until_s", "step", "type_index")

    def __init__(self, fused: FusedDevice[ReadyRun], type_index: int) -> None:
        self.fused = fused
        self.type_index = type_index
        self.busy = False
        self.stall_until_s = 0.0
        self.seconds = 0.0
        """Mean time of its recent steps, for `finish_s`."""
        self.bases: set[str] = set()
        self.step: FusedStep | None = None
        """The step it is computing; None where no part of it will count."""
        self.ends_s = 0.0
        """Time at which that step is done."""
        self.held: dict[str, ReadyRun] = {}
        """Residents that cannot join yet: the step that they were paused in, on another device, has
        not ended.
        """

    @property
    def residents(self) -> int:
        return len(self.fused.runs) + len(self.held)


class StepEngine:
    """A StepEngine is a backend of the decide-apply loop for jobs on one device each.

    The contract is `loramux_policies.loop.backend.Backend`. A job that is paused in the middle of a
    step is credited with that step: it runs to its end on a real device too. The job can go on, or
    end, once that step has ended.

    Over 300 lines: it is that contract and the event handlers behind it, on one state per device.
    """

    def __init__(
        self,
        device_types: Sequence[int],
        policy: Policy,
        meters: Meters,
        seed: int,
        *,
        padded: bool,
        phi: Callable[[int], Callable[[int], float]] | None = None,
        actual: Callable[[Job, float], float] | None = None,
        charges: bool = True,
        sorted_rows: bool = False,
        stops: Callable[[Job], float | None] = lambda _: None,
        time_factor: float = 1.0,
        live: bool = False,
    ) -> None:
        self._clock = Clock()
        self.devices = [
            StepDevice(FusedDevice(i, policy, padded=padded, phi=phi and phi(type_index)), type_index)
            for i, type_index in enumerate(device_types)
        ]
        self._meters = meters
        self._seed = seed
        self._actual = actual
        """(newest job of a step, expected dynamic bytes) -> actual dynamic bytes of the step."""
        self._charges = charges
        self._sorted_rows = sorted_rows
        self._stops = stops
        """Optimizer steps at which early-stop prediction expects a job's end."""
        self._time_factor = time_factor
        self._live = live
        self._woken: dict[int, None] = {}
        self._loop: Scheduler
        self._watched: dict[str, float] = {}
        self._in_step: dict[str, tuple[StepDevice, float]] = {}
        """Jobs that were paused, with the device whose step they were in and that step's end."""

    @property
    def now_s(self) -> float:
        return float(self._clock.env.now)

    def run(self, loop: Scheduler, arrivals: Iterator[Job]) -> None:
        """Run the whole trace on these devices."""
        self._loop = loop
        (device,) = self.devices if self._live else (None,)
        held = None if device is None else partial(getattr, device, "busy")
        self._clock.run(loop, arrivals, self._wake, held)

    def at(self, t_s: float, call: Callable[[Any], None]) -> None:
        """Call back at that time."""
        self._clock.at(t_s, call, None)

    def settle(self) -> None:
        """Bring every device's totals up to now; a step counts where it began."""
        for device in self.devices:
            self._account(device)

    # -- what the loop asks for

    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Load the job; it takes part from the next step on."""
        device = self.devices[devices[0]]
        cost = job.cost_on(device.type_index)
        self._account(device)
        run = job.run = ReadyRun(job, cost, self._seed, sorted_rows=self._sorted_rows, stop_steps=self._stops(job))
        # The entry is kept: the job may be paused again before that step ends.
        where, ends_s = self._in_step.get(job.job_id, (device, 0.0))
        done = run.done_micro >= run.target_micro - STEP_SLACK
        if done or (ends_s > self.now_s and where is not device):
            device.held[job.job_id] = run
            self._clock.at(ends_s, self._release, (device, run))
        else:
            device.fused.add(run)
            self._woken[devices[0]] = None
        if self._charges and not done:
            seconds = cost.load_s if job.done_steps == 0.0 else cost.pause_s
            # A process of its own loads a copy of the base of its own.
            if device.fused.phi is not None and not cost.overridden:
                if seconds + cost.base.load_s > 0.0:
                    device.fused.debts[job.job_id] = seconds + cost.base.load_s
                seconds = 0.0
            elif not cost.overridden and not self._live and cost.base.key not in device.bases:
                seconds += cost.base.load_s
                device.bases = {key for key in device.bases if key in device.fused.turns} | {cost.base.key}
            self._stall(device, seconds)
        self._memory(device)

    def _stall(self, device: StepDevice, seconds: float) -> None:
        """Compute nothing for that long.

        Copies are made between steps, after the step that is under way.
        """
        free_s = device.ends_s if device.busy else self.now_s
        device.stall_until_s = max(device.stall_until_s, free_s) + seconds

    def _release(self, event: Any) -> None:
        """Let a job join, or end, after the step that it was paused in."""
        device, run = event.value
        job = run.job
        if job.run is not run:  # it was paused again
            return
        self._account(device)
        del device.held[job.job_id]
        if run.done_micro >= run.target_micro - STEP_SLACK:
            self._end_job(device, run)
            self._clock.request_decision()
            return
        device.fused.add(run)
        if not device.busy:
            self._begin(device)

    def set_share(self, job: Job, share: float) -> None:
        """Change a running job's share of its seat, from the next step on."""
        self.devices[job.devices[0]].fused.reseat()

    def stop(self, job: Job) -> None:
        """Take a running job off its device."""
        device = self.devices[job.devices[0]]
        self._account(device)
        self._watched.pop(job.job_id, None)
        if job.job_id in device.held:
            run = device.held.pop(job.job_id)
            device.fused.debts.pop(job.job_id, None)
        else:
            run = device.fused.remove(job.job_id)
            self._finish_step(device, run)
        self._credit(run)
        if self._charges and device.fused.phi is None:
            self._stall(device, run.cost.pause_s)
        job.run = None
        self._memory(device)
        self._woken[device.fused.device_id] = None

    def _finish_step(self, device: StepDevice, run: ReadyRun) -> None:
        """Credit a run that leaves with its share of the step in progress."""
        if device.step is None:
            return
        base, entries = device.step
        for entry in entries:
            if entry.job_id == run.job_id:
                run.advance(entry.rows)
                self._in_step[run.job_id] = device, device.ends_s
                device.step = FusedStep(base, tuple(other for other in entries if other is not entry))

    def sync(self, job: Job) -> None:
        """Bring a running job's figures up to date (as of the last step boundary)."""
        self._credit(job.run)

    @staticmethod
    def _credit(run: ReadyRun) -> None:
        job, cost = run.job, run.cost
        steps = min(run.done_micro / cost.accumulation, job.true_steps)
        job.attained_s += (steps - job.done_steps) * cost.accumulation * cost.solo_step_s
        job.done_steps = steps
        job.tokens_done = (job.tokens_done or 0.0) + run.tokens_done
        run.tokens_done = 0.0

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return attained and remaining solo seconds of all running jobs."""
        jobs = list(self._loop.cluster.running.values())
        for job in jobs:
            self.sync(job)
        remaining = [self._loop.cluster.remaining_s(job) for job in jobs]
        return jobs, np.array([job.attained_s for job in jobs]), np.array(remaining)

    def finish_s(self, job: Job) -> float:
        """Return the predicted finish if nothing changes.

        That is the predicted micro-steps left at the device's recent step time.
        """
        device = self.devices[job.devices[0]]
        cost = job.cost_on(device.type_index)
        self.sync(job)
        left = max(0.0, job.predicted_steps - job.done_steps) * cost.accumulation
        fused = device.fused
        start_s = max(self.now_s, device.stall_until_s)
        if fused.phi is not None:
            seats = max(fused.costs.seats, job.share)
            own = phi_at(fused.phi, seats) * job.share / seats
            return start_s + (left * cost.solo_step_s + fused.debts.get(job.job_id, 0.0)) / own
        return start_s + left * (device.seconds or cost.solo_step_s) / fused.part(job.share)

    def review_at(self, t_s: float) -> None:
        """Call `decide` at that time."""
        self._clock.review_at(t_s)

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` at the first step boundary at which the job has attained that much."""
        self._watched[job.job_id] = min(attained_s, self._watched.get(job.job_id, np.inf))

    # -- steps

    def _wake(self) -> None:
        woken = list(self._woken)
        self._woken.clear()
        for device_id in woken:
            device = self.devices[device_id]
            if not device.busy and device.fused.runs:
                self._begin(device)
        self._meters.queue(self.now_s, self._loop.cluster.n_waiting)

    def _begin(self, device: StepDevice) -> None:
        fused = device.fused
        fused.costs.ledger = self._loop.cluster.fleet[fused.device_id]
        fused.now_s = self.now_s
        loading_s = fused.load() if fused.debts else None
        if loading_s is not None:
            device.busy, device.step = True, None
            device.ends_s = max(self.now_s, device.stall_until_s) + loading_s
            self._clock.at(device.ends_s, self._loaded, device)
            return
        step = fused.next_step()
        cost = fused.costs.cost(step, memory=self._actual is not None)
        device.busy = True
        seconds = cost.seconds * self._time_factor
        device.seconds = seconds if device.seconds == 0.0 else 0.9 * device.seconds + 0.1 * seconds
        start_s = max(self.now_s, device.stall_until_s)
        device.ends_s = start_s + seconds
        if self._actual is not None:
            names = {entry.job_id for entry in step.entries}
            newest = next(run for run in reversed(fused.runs.values()) if run.job_id in names).job
            ledger = fused.costs.ledger
            static = ledger.own + ledger.weights + ledger.context
            need_bytes = static + self._actual(newest, cost.dynamic_bytes)
            if need_bytes > ledger.capacity:
                device.step = None
                said = beyond_memory(need_bytes, ledger.capacity)
                self._clock.at(device.ends_s, self._out_of_memory, (device, newest, newest.run, said))
                return
        device.step = step
        self._meters.step(fused.device_id, cost.real_tokens, cost.computed_tokens)
        self._clock.at(device.ends_s, self._end, device)

    def _loaded(self, event: Any) -> None:
        """Go on after a process has had its turn, in which it loaded."""
        device = event.value
        device.busy = False
        if device.fused.runs:
            self._begin(device)

    def _end(self, event: Any) -> None:
        device = event.value
        fused = device.fused
        device.busy = False
        step, device.step = device.step, None
        assert step is not None
        fused.advance(step)  # without those that were paused in the middle of it
        loop = self._loop
        for entry in step.entries:
            run = fused.runs[entry.job_id]
            if run.done_micro >= run.target_micro - STEP_SLACK:
                self._finish(device, run)
            elif self._watched and self._watched.get(entry.job_id, np.inf) <= self._attained(run):
                del self._watched[entry.job_id]
                loop.review()
        if loop.due:
            self._woken[fused.device_id] = None
            self._clock.request_decision()
        elif fused.runs:
            self._begin(device)

    def _attained(self, run: ReadyRun) -> float:
        self._credit(run)
        return run.job.attained_s

    def _finish(self, device: StepDevice, run: ReadyRun) -> None:
        self._account(device)
        device.fused.remove(run.job_id)
        self._end_job(device, run)

    def _end_job(self, device: StepDevice, run: ReadyRun) -> None:
        job = run.job
        self._credit(run)
        self._watched.pop(job.job_id, None)
        self._in_step.pop(job.job_id, None)
        job.done_steps = job.true_steps
        job.run = None
        self._loop.finish(job)
        self._memory(device)

    def _out_of_memory(self, event: Any) -> None:
        device, job, run, said = event.value
        device.busy = False
        self._woken[device.fused.device_id] = None
        if job.run is run:  # else it has left meanwhile
            self._loop.evict(job, said)
        self._loop.review()
        self._clock.request_decision()

    # -- accounts

    def _account(self, device: StepDevice) -> None:
        self._meters.advance(device.fused.device_id, self.now_s, 0.0, IDLE, device.residents)

    def _memory(self, device: StepDevice) -> None:
        device_id, residents = device.fused.device_id, device.residents
        ledger = self._loop.cluster.fleet[device_id]
        self._meters.memory(device_id, self.now_s, ledger.expected if residents else 0.0, residents)
