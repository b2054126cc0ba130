"""This module puts together what trains the jobs of a live scheduler.

That is the one device of this process, or the workers of a pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import Meters
from loramux_policies.policy import Policy
from loramux_policies.stepping.contracts import Devices, Note, States
from loramux_policies.stepping.residents import Residents
from loramux_profiles.fitted import FittedModel
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.preparation import PreparedJob
from loramux_runtime.jobs.training_job import Log, TrainingJob
from loramux_runtime.live.drive.flights import Flights
from loramux_runtime.live.drive.job_states import PoolStates
from loramux_runtime.live.drive.live_times import LiveTimes
from loramux_runtime.live.drive.makers import Makers
from loramux_runtime.live.drive.pool import WorkerPool
from loramux_runtime.live.drive.pool_executor import PoolExecutor
from loramux_runtime.live.drive.remote_training import RemoteTraining
from loramux_runtime.live.drive.step_marks import StepMarks
from loramux_runtime.live.drive.worker_restarts import WorkerRestarts
from loramux_runtime.live.drive.workforce import Workforce
from loramux_runtime.train.executor import Executor
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.states import LocalStates


class LiveDevices(Devices[TrainingJob], Protocol):
    """Describes devices that can be looked at while they work."""

    step_s: float
    """Seconds spent in fused steps so far.

    The rest of the time with residents is the scheduler's own.
    """

    @property
    def clock_s(self) -> float:
        """Seconds right now; the driver's `now_s` is that of the step boundary before it."""

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Return the most bytes that the device has held; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """Holds the parts of a live run that train (`contracts`).

    It also has what makes a job's state at its first step.
    """

    residents: Residents[TrainingJob]
    devices: LiveDevices
    states: States[TrainingJob]
    meters: Meters
    make: Callable[[PreparedJob, Log], TrainingJob]
    workforce: Workforce | None = None
    """Workforce of a pool; None without a pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Makes the drive of a live scheduler.

    `base` is on the device of this process; with a `pool` it is the base's outline
    (`bases.outline_base`), as the workers have their own.
    """

    base: BaseModel
    pool: WorkerPool | None = None
    recompute: bool = False
    fitted: FittedModel | None = None
    """Fitted model of the device profile, which is to be kept right by what is observed."""
    faults: FaultPlan = NONE
    note: Note | None = None
    """Takes the rows of the recorded stream (one device)."""
    hang_s: float = inf
    """A worker that has not answered for so long is taken for dead."""

    @property
    def n_devices(self) -> int:
        """Number of devices of this engine."""
        return 1 if self.pool is None else self.pool.size

    @property
    def device(self) -> str:
        """What the devices are, for people."""
        return str(self.base.device) if self.pool is None else self.pool.device

    def start(
        self,
        policy: Policy,
        times: LiveTimes,
        training: dict[str, TrainingJob],
        marks: StepMarks,
        *,
        makers: Makers,
        find_again: Callable[[Job], TrainingJob],
        worker_up: Callable[[int, str], None],
        stopping: Callable[[], bool],
    ) -> Drive:
        """Put the drive together, with the jobs' states in `training` by job id.

        `makers` make the state of a job that starts (as it was saved last, or at its first step),
        `find_again` makes that of a job whose state is lost; `worker_up` is told of workers that
        have come up again, `stopping` says whether the scheduler is to end.
        """
        meters = Meters(self.n_devices, record=False)
        fitted = self.fitted
        observers = None if fitted is None else [Observer(fitted) for _ in range(self.n_devices)]
        if self.pool is None:
            model = FusedModel(self.base, recompute=self.recompute)
            executor = Executor(
                model,
                meters,
                times=times,
                faults=self.faults,
                before_step=marks.step_follows,
                observer=None if observers is None else observers[0],
            )
            return Drive(
                residents=Residents(policy),
                devices=executor,
                states=LocalStates(model, training, makers, marks.joining, stopping=stopping),
                meters=meters,
                make=lambda prepared, log: TrainingJob.new(model, prepared.config, prepared.data, log=log),
            )
        pool = self.pool
        residents: Residents[TrainingJob] = Residents(policy, (0,) * pool.size)
        flights, restarts = Flights(pool, times, self.hang_s), WorkerRestarts(pool)
        states = PoolStates(residents, pool, times, flights, restarts, training, makers, find_again=find_again)
        workers = PoolExecutor(
            residents,
            states,
            flights,
            restarts,
            times,
            meters,
            observers=observers,
            recompute=self.recompute,
        )
        return Drive(
            residents=residents,
            devices=workers,
            states=states,
            meters=meters,
            make=lambda prepared, log: RemoteTraining(prepared, self.base, log),
            workforce=Workforce(restarts, times, worker_up),
        )
