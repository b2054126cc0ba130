"""A ranking finds residents by one figure, the largest first, one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loramux_policies.loop.job import Job
from loramux_traces.arrays import Floats


class Ranking:
    """A ranking is kept for the whole of a decision.

    Each waiting job of a window asks for the same few residents at its head. Of residents with
    equal figures the latest submission comes first, then the largest id.
    """

    __slots__ = ("_best", "_found", "_jobs", "_next", "_rest", "_values")

    def __init__(self, jobs: Sequence[Job | None], values: Floats) -> None:
        self._jobs = jobs
        self._values = values
        self._rest: Floats | None = None
        """The values without those that were found.

        It is a copy, made once more is asked than how large the largest is.
        """
        self._found: list[tuple[float, Job]] = []
        self._best = int(values.argmax()) if len(values) else -1
        """Slot of the largest value that is not among those found."""
        self._next: float = values.item(self._best) if len(values) else -np.inf

    def value(self, rank: int) -> float:
        """Return the figure at a rank, at most one behind the last one asked for with `job`."""
        found = self._found
        return found[rank][0] if rank < len(found) else self._next

    def job(self, rank: int) -> Job | None:
        """Return the job at that rank; None where there are no more."""
        found = self._found
        if rank == len(found) and not self._find():
            return None
        return found[rank][1]

    def _find(self) -> bool:
        rest, jobs = self._rest, self._jobs
        if rest is None:
            rest = self._rest = self._values.copy()
        best, worst = self._best, self._next
        if best < 0 or jobs[best] is None:
            return False
        rest[best] = -np.inf
        following = int(rest.argmax())
        value = rest.item(following)
        if value == worst:
            tied = [best, *np.flatnonzero(rest == worst).tolist()]
            rest[best] = worst
            best = max([(job.spec.submit_s, job.job_id, slot) for slot in tied if (job := jobs[slot])])[2]
            rest[best] = -np.inf
            following = int(rest.argmax())
            value = rest.item(following)
        job = jobs[best]
        assert job is not None
        self._found.append((worst, job))
        self._best, self._next = following, value
        return True
