"""This module gives what `fuse()` sees of one device before a step.

It shows the residents whose turn it is, in the form that the contract asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic

from loramux_policies.stepping.step_costs import StepCosts
from loramux_policies.stepping.turns import BaseTurn, R
from loramux_policies.views import Entry, FusedStep, ReadyJob, ReadyView, StaleViewError


class FuseView(Generic[R]):
    """Holds what `fuse()` gets for one step (contract: `views.DeviceView`)."""

    __slots__ = ("_costs", "_now_s", "_ready", "_turn", "base_model", "device_id", "open", "padded")

    def __init__(self, costs: StepCosts[R], turn: BaseTurn[R], now_s: float) -> None:
        self._costs = costs
        self._now_s = now_s
        self.device_id = costs.device_id
        self.base_model = turn.base.key
        self.padded = costs.padded
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
        return self._now_s

    @property
    def ready(self) -> Sequence[ReadyView]:
        turn = self._fresh()
        if self._ready is None:
            # few steps ask for this: where everybody fits, `everyone` is the answer
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
        """Return whether these whole micro-batches fit by the upper bound at their real lengths."""
        turn = self._fresh()
        wanted = {job.job_id for job in jobs}
        return self._costs.fits(turn.base, [run for run in turn.runs if run.job_id in wanted])

    def fits_rows(self, job: ReadyJob, rows: int) -> bool:
        """Return whether the first `rows` rows of this job's next micro-batch fit the device alone.

        It goes by the upper bound.
        """
        turn = self._fresh()
        return self._costs.fits_step(FusedStep(turn.base.key, (Entry(job.job_id, rows),)))

    def everyone(self) -> FusedStep | None:
        """Return all residents in one step, or None.

        It is None where that does not fit or where one of them is in the middle of a micro-batch.
        """
        turn = self._fresh()
        safe = not (turn.mixed and self.padded)
        for run in turn.runs:
            cost = run.cost
            if run.rows != cost.rows:
                return None
            if run.tokens > cost.tokens_q or run.longest > cost.length_q:
                safe = False
        if safe or self._costs.fits(turn.base, turn.runs):
            return turn.everyone()
        return None

    def step(self, jobs: Iterable[ReadyJob]) -> FusedStep:
        """Return the fused step of these jobs' whole micro-batches."""
        self._fresh()
        return FusedStep(self.base_model, tuple(Entry(job.job_id, job.rows) for job in jobs))
