"""This module runs the devices of a pool of workers.

What the loop decides here is trained there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from loramux_policies.loop.meters import Meters
from loramux_policies.stepping.contracts import News, StepDevice, StepTimes
from loramux_policies.stepping.residents import Residents
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.flights import Flight, Flights, Trained
from loramux_runtime.live.drive.job_states import PoolStates
from loramux_runtime.live.drive.live_times import LiveTimes
from loramux_runtime.live.drive.pool import WorkerDied
from loramux_runtime.live.drive.worker import StepReport
from loramux_runtime.live.drive.worker_restarts import WorkerRestarts
from loramux_runtime.train.accounts import count_step
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.times import POLL_S, DeviceClock

TIME_SLACK: Final = 1e-12
"""Relative: steps that are predicted to end closer together than this end at one instant.

The simulator does the same.
"""


class PoolExecutor(DeviceClock):
    """Has a pool's workers carry out steps (contract: `contracts.Devices`).

    All workers are of one type.
    """

    def __init__(
        self,
        residents: Residents[TrainingJob],
        states: PoolStates,
        flights: Flights,
        restarts: WorkerRestarts,
        times: LiveTimes,
        meters: Meters,
        *,
        observers: Sequence[Observer] | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__(times)
        self._residents, self._states, self._flights = residents, states, flights
        self._restarts, self._meters = restarts, meters
        self._observers = observers
        self._recompute = recompute
        self._peaks: dict[int, float] = {}
        self.step_s = 0.0
        """Seconds spent in fused steps so far, over all devices."""

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Return the most bytes that the device has held; None where that is not known."""
        return self._peaks.get(device_id)

    def launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        """Have the worker begin the step."""
        assert device.step is not None
        entries = [(entry.job_id, entry.rows) for entry in device.step.entries]
        parts: Trained = ()
        if self._observers is not None:
            runs = zip(device.runs, entries, strict=True)
            parts = tuple((run.cost.adapter, run.training.peek(rows)) for run, (_, rows) in runs)
        self._flights.launch(device.fused.device_id, entries, predicted_s, parts)

    def sooner(self, until_s: float, news: News) -> float | None:
        """Wait for a step to end, but not beyond that time; return the instant where none has."""
        first = self._flights.first()
        if first is not None:
            if first[1] <= until_s * (1.0 + TIME_SLACK):
                return None
            self._times.wait_until(until_s, lambda: False)
            return until_s
        while not self._flights.heard(min(POLL_S, until_s - self._times.now_s())):
            now_s = self._times.now_s()
            if now_s >= until_s or news():
                return now_s
        return None

    def another(self, now_s: float) -> bool:
        """Return whether another step has ended by that instant."""
        if not self._flights:
            return False
        first = self._flights.first()
        if first is None:
            return self._flights.heard(0.0)
        return first[1] <= now_s * (1.0 + TIME_SLACK)

    def land(self, idle: Callable[[], object]) -> tuple[StepDevice[TrainingJob], StepTimes | None]:
        """Wait for a step to end and bring its jobs up to date.

        It also takes in the states of those who left the step.
        """
        self._flights.await_first()
        while not self._flights.heard(POLL_S):
            idle()  # this says that the run is alive; what came in has to wait for this step
        device_id, flight, report = self._flights.land()
        device = self._residents.devices[device_id]
        deaths = [report] if isinstance(report, WorkerDied) else []
        if isinstance(report, StepReport):
            self._states.follow_up(report.jobs)
        deaths += self._states.receive(device_id)
        if deaths or isinstance(report, WorkerDied):
            self._restarts.died(device_id, str(deaths[0]), self._times.now_s())
            return device, None
        ended_s = self._times.now_s() if flight.ends_s is None else flight.ends_s
        self.step_s += report.seconds if flight.ends_s is None else ended_s - flight.began_s
        if report.peak_bytes is not None:
            self._peaks[device_id] = report.peak_bytes
        if report.out_of_memory:
            return device, StepTimes(flight.began_s, ended_s, True)
        count_step(self._meters, device_id, report.tokens)
        return device, StepTimes(flight.began_s, ended_s, False, self._observe(device_id, flight, report))

    def _observe(self, device_id: int, flight: Flight, report: StepReport) -> float | None:
        if self._observers is None:
            return None
        return self._observers[device_id].see(
            flight.parts,
            recompute=self._recompute,
            seconds=report.seconds,
            dynamic_bytes=report.dynamic_bytes,
        )
