"""The devices of a pool of workers under the decide-apply loop: decided here, trained there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import Meters
from loramux_policies.policy import Policy
from loramux_policies.stepping.driver import StepBackend, StepDevice, StepTimes
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.clock import POLL_S, LiveTimes
from loramux_runtime.live.drive.departures import Leaving
from loramux_runtime.live.drive.flight import Flight
from loramux_runtime.live.drive.job_states import PoolStates
from loramux_runtime.live.drive.local_executor import Host
from loramux_runtime.live.drive.pool import WorkerDied, WorkerPool
from loramux_runtime.live.drive.worker import StepReport
from loramux_runtime.live.drive.worker_restarts import Nursery
from loramux_runtime.train.observer import Observer

TIME_SLACK: Final = 1e-12
"""Relative: steps that are predicted to end closer together than this end at one instant (as in the
simulator).
"""


class PoolExecutor(PoolStates):
    """Backend of the loop over a pool's devices, all of one type."""

    def __init__(
        self,
        host: Host,
        times: LiveTimes,
        pool: WorkerPool,
        policy: Policy,
        meters: Meters,
        training: dict[str, TrainingJob],
        *,
        on_end: Callable[[Job, TrainingJob], None],
        observers: Sequence[Observer] | None = None,
        recompute: bool = False,
        hang_s: float = inf,
    ) -> None:
        super().__init__(policy, device_types=(0,) * pool.size)
        self._host, self._live_times, self._pool = host, times, pool
        self.meters = meters
        self.step_s = 0.0
        self._training = training
        self._on_end = on_end
        self._observers = observers
        self._hang_s, self._recompute = hang_s, recompute
        self._where = {}
        self._flights = {}
        self._launched = 0
        self._landed = deque()
        self._peaks: dict[int, float] = {}
        self._leaving = Leaving()
        self._left_early = set()
        self._nursery = Nursery(pool)
        self._capacity: dict[int, float] = {}
        """Of devices that are down."""

    # -- steps

    def _begin(self) -> float:
        return self._live_times.now_s()

    def _launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        device_id = device.fused.device_id
        assert device.step is not None
        entries = [(entry.job_id, entry.rows) for entry in device.step.entries]
        began_s = self._live_times.now_s()
        self._launched += 1
        self._flights[device_id] = Flight(
            self._launched,
            began_s,
            self._live_times.ends_s(began_s, predicted_s),
            ()
            if self._observers is None
            else tuple((run.cost.adapter, run.training.peek(entries[i][1])) for i, run in enumerate(device.runs)),
        )
        self._pool.launch(device_id, entries)

    def _next(self) -> int | None:
        """The device whose step is predicted to end first; None where the clock is a real one."""
        ends = [(flight.ends_s, flight.number, device) for device, flight in self._flights.items()]
        known = [(end, number, device) for end, number, device in ends if end is not None]
        return min(known)[2] if known else None

    def _sooner(self, until_s: float) -> float | None:
        first = self._next()
        if first is not None:
            ends_s = self._flights[first].ends_s
            assert ends_s is not None
            if ends_s <= until_s * (1.0 + TIME_SLACK):
                return None
            self._live_times.wait_until(until_s)
            return until_s
        while not self._heard(min(POLL_S, until_s - self._live_times.now_s())):
            now_s = self._live_times.now_s()
            if now_s >= until_s or self._stopping or self._host.news() or self._look_after_workers():
                return now_s
        return None

    def _another(self) -> bool:
        if not self._flights:
            return False
        first = self._next()
        if first is None:
            return self._heard(0.0)
        ends_s = self._flights[first].ends_s
        return ends_s is not None and ends_s <= self.now_s * (1.0 + TIME_SLACK)

    def _heard(self, timeout_s: float) -> bool:
        """Whether a step has ended that is not booked yet, waiting for one that long."""
        if not self._landed:
            found = self._pool.wait(self._flights.keys(), max(0.0, timeout_s))
            if found is not None:
                self._landed.append(found)
            else:
                self._give_up_the_hung()
        return bool(self._landed)

    def _give_up_the_hung(self) -> None:
        now_s = self._live_times.now_s()
        for device_id, flight in self._flights.items():
            if flight.ends_s is None and now_s - flight.began_s > self._hang_s:
                self._landed.append((device_id, WorkerDied(f"no answer for {self._hang_s:g} s")))

    def _land(self) -> tuple[StepDevice[TrainingJob], StepTimes | None]:
        first = self._next()
        if first is not None:
            found = self._pool.wait([first], None)
            assert found is not None
            self._landed.append(found)
        while not self._heard(POLL_S):
            self._host.news()  # says that it is alive; what came in has to wait for this step
        device_id, report = self._landed.popleft()
        device, flight = self.devices[device_id], self._flights.pop(device_id)
        if flight.ends_s is not None:
            self._live_times.wait_until(flight.ends_s)
        deaths = [report] if isinstance(report, WorkerDied) else []
        if isinstance(report, StepReport):
            for job_id, about in report.jobs.items():
                if job_id in self._training:  # else it was cancelled meanwhile
                    self._remote(job_id).follow(about)
        settled = [self._settle(leaver) for leaver in self._leaving.of_device(device_id)]
        deaths += [death for death in settled if death is not None]
        if deaths or isinstance(report, WorkerDied):
            self._left_early.discard(device_id)
            self._nursery.died(device_id, str(deaths[0]), self._live_times.now_s())
            return device, None
        ended_s = self._live_times.now_s() if flight.ends_s is None else flight.ends_s
        self.step_s += report.seconds if flight.ends_s is None else ended_s - flight.began_s
        if report.peak_bytes is not None:
            self._peaks[device_id] = report.peak_bytes
        if report.out_of_memory:
            return device, StepTimes(flight.began_s, ended_s, True)
        self._left_early.discard(device_id)
        self._stepped(device_id, report.tokens)
        return device, StepTimes(flight.began_s, ended_s, False, self._observe(device, flight, report))

    def _observe(self, device: StepDevice[TrainingJob], flight: Flight, report: StepReport) -> float | None:
        if self._observers is None:
            return None
        return self._observers[device.fused.device_id].see(
            flight.parts,
            recompute=self._recompute,
            seconds=report.seconds,
            dynamic_bytes=report.dynamic_bytes,
        )

    def _ended(self, run: LiveRun[TrainingJob]) -> None:
        self._on_end(run.job, run.training)
        del self._training[run.job_id]

    def _recover(self, device: StepDevice[TrainingJob], runs: Sequence[LiveRun[TrainingJob]]) -> None:
        device_id = device.fused.device_id
        if device_id in self._left_early:  # nobody was alone in it
            self._left_early.discard(device_id)
            StepBackend._recover(self, device, runs)
        else:
            super()._recover(device, runs)

    # -- workers that die

    def _bury(self, device: StepDevice[TrainingJob], runs: Sequence[LiveRun[TrainingJob]]) -> None:
        device_id = device.fused.device_id
        in_step = {run.job_id: run.training.progress_steps for run in runs}
        for run in device.fused.runs.values():
            # else it has not been sent: its state is here
            if self._where.pop(run.job_id, None) is not None:
                self._begin_again(run.job)
        super()._bury(device, runs)
        self._capacity[device_id] = self._capacity.get(device_id) or self._loop.cluster.fleet[device_id].capacity
        self._loop.set_capacity(device_id, 0.0)
        self._host.worker_died(device_id, self._nursery.how(device_id), in_step)
        if not self._stopping:
            self._nursery.restart(device_id)

    def _look_after_workers(self) -> bool:
        """Whether a worker has come up."""
        found = self._nursery.up(self._live_times.now_s())
        for device_id, where in found:
            self._loop.set_capacity(device_id, self._capacity.pop(device_id))
            self._host.worker_up(device_id, where)
        return bool(found)

    def _expecting(self) -> bool:
        return self._nursery.expecting

    def _wait(self, until_s: float) -> float:
        self._live_times.wait_until_news(
            until_s, lambda: self._stopping or self._host.news() or self._look_after_workers()
        )
        return self._live_times.now_s()

    # -- accounts

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Most bytes that the device has held; None where it is not known."""
        return self._peaks.get(device_id)

    def _boundary(self) -> bool:
        came_up = self._look_after_workers()
        return super()._boundary() or came_up
