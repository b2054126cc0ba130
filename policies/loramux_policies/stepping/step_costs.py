"""This module says what one fused step of a device takes in time and memory.

It also says whether the step fits, at the real lengths of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

from loramux_policies.loop.ledger import Ledger
from loramux_policies.stepping.shares import phi_at
from loramux_policies.stepping.turns import R
from loramux_policies.views import FusedStep
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.work import ROUNDING, BaseCost


class StepCost(NamedTuple):
    """Holds what one fused step takes."""

    seconds: float
    computed_tokens: float
    real_tokens: float
    dynamic_bytes: float
    """Expected peak of the activations at the real lengths."""


class StepCosts(Generic[R]):
    """Gives the costs of one device's steps.

    They follow from its residents' next micro-batches and its ledger.
    """

    __slots__ = ("device_id", "ledger", "padded", "phi", "runs", "seats")

    def __init__(self, device_id: int, *, padded: bool, phi: Callable[[int], float] | None = None) -> None:
        self.device_id = device_id
        self.padded = padded
        self.phi = phi
        """Aggregate speed of so many separate processes; None: one process, fused."""
        self.ledger: Ledger | None = None
        """Set by the engine before each step: the loop replaces ledgers as plans are applied."""
        self.runs: dict[str, R] = {}
        """Residents of the device by job id."""
        self.seats = 0.0
        """Sum of the residents' shares."""

    def fits_step(self, step: FusedStep) -> bool:
        """Return whether these rows fit by the upper bound at their real lengths."""
        return self.ledger is None or self.need_bytes(step) <= self.ledger.capacity

    def need_bytes(self, step: FusedStep) -> float:
        """Return the upper bound of what the device needs in a step with these rows."""
        ledger = self.ledger
        return (
            0.0 if ledger is None else self._static() + self.cost(step).dynamic_bytes * ledger.factor(len(ledger.jobs))
        )

    def _static(self) -> float:
        assert self.ledger is not None
        return self.ledger.own + self.ledger.weights + self.ledger.context

    def fits(self, base: BaseCost, runs: Sequence[R]) -> bool:
        """Return whether whole micro-batches of these runs fit.

        It goes by the upper bound at their real lengths.
        """
        if self.ledger is None or not runs:
            return True
        charged = [run for run in runs if not run.cost.overridden]
        if not charged:
            return True
        if base.planned is not None:
            return self._planned_fits(base.planned, charged)
        dynamic = base.dynamic_bytes
        padded = -(-max(run.longest for run in runs) // ROUNDING) * ROUNDING if self.padded else 0
        for run in charged:
            cost, rows = run.cost, run.rows
            tokens = rows * padded if self.padded else run.tokens
            squares = rows * padded * padded if self.padded else run.squares
            dynamic += cost.token_bytes * tokens + cost.square_bytes * squares + cost.row_bytes * rows
        return self._static() + dynamic * self.ledger.factor(len(self.ledger.jobs)) <= self.ledger.capacity

    def _planned_fits(self, planned: PlannedMemory, runs: Sequence[R]) -> bool:
        """Return whether the runs fit by the allocation plan.

        The plan is not asked where all residents fit as they were admitted and these rows are no
        longer than that. This is so in most steps: the plan takes about half a millisecond, such an
        answer microseconds.
        """
        ledger = self.ledger
        assert ledger is not None
        if ledger.used <= ledger.capacity and all(
            run.tokens <= run.cost.tokens_q and run.longest <= run.cost.length_q for run in runs
        ):
            return True
        dynamic = planned.step((run.cost, run.lengths[: run.rows]) for run in runs)
        return self._static() + dynamic * ledger.factor(len(ledger.jobs)) <= ledger.capacity

    def cost(self, step: FusedStep, *, memory: bool = True) -> StepCost:
        """Return the time, tokens and memory of a step at the real lengths of its micro-batches.

        Without `memory` the plan is not asked (half a millisecond), and `dynamic_bytes` means
        nothing.
        """
        runs = self.runs
        real = computed = 0
        work = squared = fixed = dynamic = 0.0
        charged = False
        floors: dict[str, float] = {}
        base: BaseCost | None = None
        if self.padded:
            longest = max(
                runs[e.job_id].longest if e.rows == runs[e.job_id].rows else max(runs[e.job_id].lengths[: e.rows])
                for e in step.entries
            )
            padded = -(-longest // ROUNDING) * ROUNDING
        for job_id, rows in step.entries:
            run = runs[job_id]
            cost = run.cost
            base = cost.base
            if rows == run.rows:
                tokens, squares = run.tokens, run.squares
            else:
                lengths = run.lengths[:rows]
                tokens, squares = sum(lengths), sum(n * n for n in lengths)
            real += tokens
            if self.padded:
                tokens = rows * padded
                squares = tokens * padded
            computed += tokens
            work += cost.token_s * tokens
            squared += cost.square_s * squares
            fixed += cost.step_s
            floors[cost.method] = cost.method_floor_s
            if not cost.overridden:
                charged = True
                dynamic += cost.token_bytes * tokens + cost.square_bytes * squares + cost.row_bytes * rows
        assert base is not None
        rounded = -(-computed // ROUNDING) * ROUNDING
        work += (rounded - computed) * base.token_s
        floor = base.floor_s + sum(floors.values())
        busy = base.read_s + work + squared
        seconds = (busy if busy > floor else floor) + fixed
        if self.phi is not None:
            seconds /= phi_at(self.phi, self.seats)
        if not charged:
            return StepCost(seconds, rounded, real, 0.0)
        if base.planned is not None and memory:
            dynamic = base.planned.step(
                (run.cost, run.lengths[:rows])
                for run, rows in ((runs[job_id], rows) for job_id, rows in step.entries)
                if not run.cost.overridden
            )
        return StepCost(seconds, rounded, real, base.dynamic_bytes + dynamic)
