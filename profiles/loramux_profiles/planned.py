"""Memory of fused steps by the allocation plan: what a fitted profile gives the scheduler instead of linear constants.

The plan is no sum over jobs (temporaries of one job's kernels are gone when the next one's are made, and a tensor of
the whole step is kept as soon as one job needs it), so that a set is asked about as a set. Admission asks about classes
of jobs and is remembered; a step asks about its real lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan import plan_bytes
from loramux_profiles.step_point import JobPoint, StepPoint

if TYPE_CHECKING:
    from loramux_profiles.work import JobCost

REMEMBERED: Final = 65_536
"""Sets of classes whose bytes are kept."""


class PlannedMemory:
    """Expected dynamic bytes of steps of one base on one device: scale * plan + offset."""

    def __init__(
        self, shape: ModelShape, *, dtype: str, exact: bool, scale: float = 1.0, offset_bytes: float = 0.0
    ) -> None:
        self.shape, self.dtype, self.exact = shape, dtype, exact
        self.scale, self.offset_bytes = scale, offset_bytes
        self._known: dict[tuple[int, ...], float] = {}
        self._classes: dict[int, JobCost] = {}
        """Keeps classes alive whose ids are keys."""

    def point_bytes(self, point: StepPoint) -> float:
        """Of a step."""
        return self.scale * plan_bytes(self.shape, point, dtype=self.dtype, exact=self.exact) + self.offset_bytes

    def admitted(self, costs: Sequence[JobCost]) -> float:
        """Of a set of jobs at their admission quantiles, each with its whole micro-batch; 0 for none."""
        if not costs:
            return 0.0
        key = tuple(sorted(map(id, costs)))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
                self._classes.clear()
            self._classes.update((id(cost), cost) for cost in costs)
            ordered = [self._classes[i] for i in key]
            known = self._known[key] = self.step((cost, _admitted_lengths(cost)) for cost in ordered)
        return known

    def admitted_point(self, costs: Sequence[JobCost]) -> StepPoint:
        """The step that `admitted` speaks of."""
        jobs = tuple(_job_point(cost, _admitted_lengths(cost)) for cost in costs)
        return StepPoint(jobs=jobs, recompute=any(cost.recompute for cost in costs))

    def step(self, parts: Iterable[tuple[JobCost, Sequence[int]]]) -> float:
        """Of a step with these jobs' rows of these lengths. All tokens count as learned, the most there can be."""
        found = list(parts)
        jobs = tuple(_job_point(cost, lengths) for cost, lengths in found)
        return self.point_bytes(StepPoint(jobs=jobs, recompute=any(cost.recompute for cost, _ in found)))


def _job_point(cost: JobCost, lengths: Sequence[int]) -> JobPoint:
    assert cost.adapter is not None, "a planned base has planned jobs"
    return JobPoint(adapter=cost.adapter, lengths=tuple(lengths), labels=sum(lengths) - len(lengths))


def _admitted_lengths(cost: JobCost) -> tuple[int, ...]:
    """Rows that have the admission quantile of the micro-batch's tokens, none longer than that of its longest row."""
    tokens = int(cost.tokens_q)
    longest = max(1, min(int(cost.length_q), tokens))
    whole, rest = divmod(tokens, longest)
    lengths = [longest] * whole + ([rest] if rest else [])
    while len(lengths) < cost.rows and max(lengths) > 1:  # more, shorter rows of the same total
        i = lengths.index(max(lengths))
        half = lengths[i] // 2
        lengths[i : i + 1] = [half, lengths[i] - half]
    return tuple(lengths)
