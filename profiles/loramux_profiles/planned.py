"""This module gives the memory of fused steps by the allocation plan.

A fitted profile gives the scheduler the plan instead of linear constants. The plan is no sum over
jobs (temporaries of one job's kernels are gone when the next one's are made, and a tensor of the
whole step is kept as soon as one job needs it), so that a set is asked about as a set. Admission
asks about classes of jobs, and its answers are remembered; a step asks about its real lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan import plan_bytes
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint

REMEMBERED: Final = 65_536
"""Number of sets of classes whose bytes are kept."""


class PlannedJob(Protocol):
    """States what the plan asks of a class of jobs (`work.JobCost`)."""

    @property
    def adapter(self) -> AdapterPoint | None:
        """Return the adapter in the plan's terms."""

    @property
    def rows(self) -> int:
        """Return the number of sequences in one micro-batch."""

    @property
    def length_q(self) -> int:
        """Return the admission quantile of the longest row of a micro-batch, in tokens."""

    @property
    def tokens_q(self) -> float:
        """Return the admission quantile of a micro-batch's tokens."""

    @property
    def recompute(self) -> bool:
        """Return whether layers are run again in the backward pass."""


class PlannedMemory:
    """Gives expected dynamic bytes of steps of one base on one device: scale * plan + offset."""

    def __init__(
        self, shape: ModelShape, *, dtype: str, exact: bool, scale: float = 1.0, offset_bytes: float = 0.0
    ) -> None:
        self.shape, self.dtype, self.exact = shape, dtype, exact
        self.scale, self.offset_bytes = scale, offset_bytes
        self._known: dict[tuple[int, ...], float] = {}
        self._classes: dict[int, PlannedJob] = {}
        """Keeps the classes alive whose ids are keys."""

    def point_bytes(self, point: StepPoint) -> float:
        """Return the expected dynamic bytes of a step."""
        return self.scale * plan_bytes(self.shape, point, dtype=self.dtype, exact=self.exact) + self.offset_bytes

    def admitted(self, costs: Sequence[PlannedJob]) -> float:
        """Return the bytes of a set of jobs at their admission quantiles; 0 for none.

        Each job takes part with its whole micro-batch.
        """
        if not costs:
            return 0.0
        key = tuple(sorted(map(id, costs)))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
                self._classes.clear()
            self._classes.update((id(cost), cost) for cost in costs)
            known = self._known[key] = self.point_bytes(self.admitted_point([self._classes[i] for i in key]))
        return known

    def admitted_point(self, costs: Sequence[PlannedJob]) -> StepPoint:
        """Return the step that `admitted` speaks of."""
        # a class once: a set may hold a thousand copies of a job of thousands of rows
        points = {id(cost): _job_point(cost, _admitted_lengths(cost)) for cost in {id(c): c for c in costs}.values()}
        jobs = tuple(points[id(cost)] for cost in costs)
        return StepPoint(jobs=jobs, recompute=any(cost.recompute for cost in costs))

    def step(self, parts: Iterable[tuple[PlannedJob, Sequence[int]]]) -> float:
        """Return the bytes of a step with these jobs' rows of these lengths.

        All tokens count as learned, which is the most there can be.
        """
        found = list(parts)
        jobs = tuple(_job_point(cost, lengths) for cost, lengths in found)
        return self.point_bytes(StepPoint(jobs=jobs, recompute=any(cost.recompute for cost, _ in found)))


def _job_point(cost: PlannedJob, lengths: Sequence[int]) -> JobPoint:
    assert cost.adapter is not None, "a planned base has planned jobs"
    return JobPoint(adapter=cost.adapter, lengths=tuple(lengths), labels=sum(lengths) - len(lengths))


def _admitted_lengths(cost: PlannedJob) -> tuple[int, ...]:
    """Return rows that hold the admission quantile of the micro-batch's tokens.

    No row is longer than the admission quantile of the longest row.
    """
    tokens = int(cost.tokens_q)
    longest = max(1, min(int(cost.length_q), tokens))
    whole, rest = divmod(tokens, longest)
    lengths = [longest] * whole + ([rest] if rest else [])
    # More, shorter rows of the same total: of the longest rows, the first is halved, again and
    # again. All of one length are halved in one pass: one by one, 16,384 rows took 5.4 s, not 6 ms.
    while len(lengths) < cost.rows and (most := max(lengths)) > 1:
        missing = cost.rows - len(lengths)
        halved: list[int] = []
        for length in lengths:
            if length == most and missing:
                halved += (length // 2, length - length // 2)
                missing -= 1
            else:
                halved.append(length)
        lengths = halved
    return tuple(lengths)
