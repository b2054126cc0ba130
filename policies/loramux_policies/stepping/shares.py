"""This module says what a share of a seat means (contract: `Plan.start`), for both fidelities.

Whole seats are in every step. Jobs with a share s below 1 take turns: they lie side by side on a
line, as wide as their shares, and a step takes those under u, u + 1, u + 2, .. for a u that runs
through [0, 1) evenly (systematic sampling). So each is in the share s of the steps, and every step
holds as many of them as their shares add up to.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import ceil
from typing import Final, NamedTuple

SAME: Final = 1e-9
"""Tolerance for shares of tied jobs, which add up to whole seats only to rounding."""
GOLDEN: Final = 0.6180339887498949
"""Step of the sequence that spreads the turns over [0, 1).

Multiples of it, less whole numbers, fill [0, 1) more evenly than anything drawn, for any number of
them.
"""


class Seating(NamedTuple):
    """Says who is in the step, and in which part of the steps."""

    ends: tuple[float, ...]
    """Where on [0, 1) each set stops being the one in the step; the last is 1."""
    sets: tuple[tuple[int, ...], ...]
    """Positions of the members of each set."""
    scale: float
    """Seats that the shares add up to, where those are less than one; else 1.

    A device does not idle for a share.
    """

    def weights(self) -> list[float]:
        """Return the part of the steps that each set has."""
        return [end - start for start, end in zip((0.0, *self.ends), self.ends, strict=False)]

    def at(self, turn: int) -> tuple[int, ...]:
        """Return the set of the turn-th step."""
        return self.sets[bisect_right(self.ends, (turn * GOLDEN) % 1.0)]


def seating(shares: Sequence[float]) -> Seating:
    """Return the sets of jobs with these shares, in their order on the line."""
    total = sum(shares)
    scale = total if total < 1.0 - SAME else 1.0
    edges = [0.0]
    for share in shares:
        edges.append(edges[-1] + (share / scale if share < 1.0 - SAME else 0.0))
    edges = [float(round(edge)) if abs(edge - round(edge)) < SAME else edge for edge in edges]
    cuts = sorted({edge % 1.0 for edge in edges})
    sets = []
    for start, end in zip(cuts, [*cuts[1:], 1.0], strict=True):
        u = 0.5 * (start + end)
        sets.append(
            tuple(
                i
                for i, share in enumerate(shares)
                if share >= 1.0 - SAME or ceil(edges[i + 1] - u) > ceil(edges[i] - u)
            )
        )
    return Seating((*cuts[1:], 1.0), tuple(sets), scale)


def phi_at(phi: Callable[[int], float], seats: float) -> float:
    """Return a speed-up curve's value between whole numbers of seats, and for less than one seat.

    A device does not idle for a share.
    """
    low = max(1, int(seats + SAME))
    part = seats - low
    return phi(low) if part < SAME else (1.0 - part) * phi(low) + part * phi(low + 1)
