"""What `fuse()` sees of one device before a step: the residents whose turn it is, as the contract has them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from loramux_policies.loop.job import Job
from loramux_policies.views import Entry, FusedStep, ReadyJob, ReadyView, StaleViewError
from loramux_profiles.work import BaseCost, JobCost

if TYPE_CHECKING:
    from loramux_policies.stepping.fused_device import FusedDevice


class StepRun(ReadyJob, Protocol):
    """A resident as its device keeps it: what policies see of it (`views.ReadyJob`), and what a step does to it."""

    waited: int
    job: Job

    @property
    def cost(self) -> JobCost: ...
    @property
    def squares(self) -> int:
        """Sum of the squared row lengths of its next micro-batch."""

    def advance(self, rows: int) -> None:
        """`rows` of its micro-batch were trained on."""


R = TypeVar("R", bound=StepRun)


def place(run: StepRun) -> tuple[int, float, str]:
    return (-run.priority, run.submit_s, run.job_id)


class BaseTurn(Generic[R]):
    """The residents of one base model on one device, in (priority descending, submission, id) order."""

    __slots__ = ("_everyone", "base", "mixed", "runs")

    def __init__(self, base: BaseCost) -> None:
        self.base = base
        self.runs: list[R] = []
        self.mixed = False
        """Some jobs are charged their mem_bytes and others by the model, which does not foresee that the former pad
        the latter.
        """
        self._everyone: FusedStep | None = None

    def add(self, run: R) -> None:
        self.runs.append(run)
        self.runs.sort(key=place)
        self._changed()

    def remove(self, run: R) -> None:
        self.runs.remove(run)
        self._changed()

    def only(self, members: Collection[str]) -> BaseTurn[R]:
        """The same without those whose shares leave them out of this step."""
        turn: BaseTurn[R] = BaseTurn(self.base)
        turn.runs = [run for run in self.runs if run.job_id in members]
        turn._changed()
        return turn

    def _changed(self) -> None:
        self.mixed = len({run.cost.overridden for run in self.runs}) > 1
        self._everyone = None

    def everyone(self) -> FusedStep:
        """A step of all of them, whole; made once per set of residents."""
        if self._everyone is None:
            self._everyone = FusedStep(self.base.key, tuple(Entry(r.job_id, r.cost.rows) for r in self.runs))
        return self._everyone


class FuseView(Generic[R]):
    """What `fuse()` gets for one step (contract: `views.DeviceView`)."""

    __slots__ = ("_device", "_ready", "_turn", "base_model", "device_id", "open", "padded")

    def __init__(self, device: FusedDevice[R], turn: BaseTurn[R]) -> None:
        self._device = device
        self.device_id = device.device_id
        self.base_model = turn.base.key
        self.padded = device.padded
        self._turn = turn
        self._ready: tuple[ReadyView, ...] | None = None
        self.open = True

    def _fresh(self) -> BaseTurn[R]:
        if not self.open:
            raise StaleViewError("this device view is over: fuse() has returned")
        return self._turn

    @property
    def now_s(self) -> float:
        self._fresh()
        return self._device.now_s

    @property
    def ready(self) -> Sequence[ReadyView]:
        turn = self._fresh()
        if self._ready is None:  # few steps ask: where everybody fits, `everyone` is the answer
            new = tuple.__new__
            self._ready = tuple(
                [
                    new(
                        ReadyView,
                        (r.job_id, r.submit_s, r.priority, r.rows, r.waited, r.p_stop, r.longest, r.tokens, r.lengths),
                    )
                    for r in turn.runs
                ]
            )
        return self._ready

    @property
    def n_residents(self) -> int:
        return len(self._fresh().runs)

    def fits(self, jobs: Iterable[ReadyJob]) -> bool:
        """Whether these micro-batches, whole, fit by the upper bound at their real lengths."""
        turn = self._fresh()
        wanted = {job.job_id for job in jobs}
        return self._device.fits(turn.base, [run for run in turn.runs if run.job_id in wanted])

    def fits_rows(self, job: ReadyJob, rows: int) -> bool:
        """Whether the first `rows` rows of this job's next micro-batch fit the device alone, by the upper bound."""
        turn = self._fresh()
        return self._device._entries_fit(FusedStep(turn.base.key, (Entry(job.job_id, rows),)), turn.base)

    def everyone(self) -> FusedStep | None:
        """All residents in one step, or None where that does not fit or one of them is in the middle of a
        micro-batch.
        """
        turn = self._fresh()
        safe = not (turn.mixed and self.padded)
        for run in turn.runs:
            cost = run.cost
            if run.rows != cost.rows:
                return None
            if run.tokens > cost.tokens_q or run.longest > cost.length_q:
                safe = False
        if safe or self._device.fits(turn.base, turn.runs):
            return turn.everyone()
        return None

    def step(self, jobs: Iterable[ReadyJob]) -> FusedStep:
        """The fused step of these jobs' whole micro-batches."""
        self._fresh()
        return FusedStep(self.base_model, tuple(Entry(job.job_id, job.rows) for job in jobs))
