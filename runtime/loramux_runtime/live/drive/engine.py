"""What trains the jobs of a live scheduler: the one device of this process, or the workers of a pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import Meters
from loramux_policies.policy import Policy
from loramux_policies.stepping.driver import Note
from loramux_profiles.fitted import FittedModel
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.preparation import Admitted
from loramux_runtime.jobs.training_job import Log, TrainingJob
from loramux_runtime.live.drive.clock import LiveTimes
from loramux_runtime.live.drive.local_executor import Host, LiveBackend, LiveExecutor
from loramux_runtime.live.drive.pool import WorkerPool
from loramux_runtime.live.drive.pool_executor import PoolExecutor
from loramux_runtime.live.drive.remote_training import RemoteTraining
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.observer import Observer


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """`base` on the device of this process; with a `pool`, the base's outline (`train.outline_base`): its workers have
    their own.
    """

    base: BaseModel
    pool: WorkerPool | None = None
    recompute: bool = False
    fitted: FittedModel | None = None
    """Of the device profile, to be kept right by what is observed."""
    faults: FaultPlan = NONE
    note: Note | None = None
    """Takes the rows of the recorded stream (one device)."""
    rss_before: int | None = None
    hang_s: float = inf
    """A worker that has not answered for so long is taken for dead."""

    @property
    def devices(self) -> int:
        """How many there are."""
        return 1 if self.pool is None else self.pool.size

    @property
    def device(self) -> str:
        """What they are, for people."""
        return str(self.base.device) if self.pool is None else self.pool.device

    def start(
        self,
        host: Host,
        times: LiveTimes,
        policy: Policy,
        training: dict[str, TrainingJob],
        on_end: Callable[[Job, TrainingJob], None],
    ) -> tuple[LiveBackend, Callable[[Admitted, Log], TrainingJob]]:
        """The backend, and what makes the training state of an admitted job."""
        meters = Meters(self.devices, record=False)
        observers = None if self.fitted is None else [Observer(self.fitted) for _ in range(self.devices)]
        if self.pool is not None:
            backend = PoolExecutor(
                host,
                times,
                self.pool,
                policy,
                meters,
                training,
                on_end=on_end,
                observers=observers,
                recompute=self.recompute,
                hang_s=self.hang_s,
            )
            return backend, lambda admitted, log: RemoteTraining(admitted, self.base, log)
        model = FusedModel(self.base, recompute=self.recompute)
        executor = LiveExecutor(
            host,
            times,
            model,
            policy,
            meters,
            training,
            faults=self.faults,
            on_end=on_end,
            note=self.note,
            observer=None if observers is None else observers[0],
            rss_before=self.rss_before,
        )
        return executor, lambda admitted, log: TrainingJob.new(model, admitted.config, admitted.data, log=log)
