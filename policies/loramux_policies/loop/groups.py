"""This module adds up the activations of the residents that share one base model on a device."""

from __future__ import annotations

from typing import ClassVar

from loramux_profiles.work import ROUNDING, BaseCost, JobCost


class Group:
    """A group holds the residents of one base model on one device.

    They fuse, so their activations add up.
    """

    __slots__ = ("base", "by_row", "by_square", "by_token", "dynamic", "jobs", "longest")
    additive: ClassVar[bool] = True
    """Whether `with_one` is a sum; `has_room` adds it up itself (a call less, 1% of a run)."""

    def __init__(self, base: BaseCost) -> None:
        self.base = base
        self.jobs = 0
        self.dynamic = 0.0
        """Packed: the sum of the jobs' own dynamic bytes."""
        self.by_token = 0.0
        """Padded: the sum of rows * token_bytes.

        `padded_bytes` multiplies it by the common padded length. The next two are sums of the same
        kind: `by_square` is multiplied by the square of that length, `by_row` by nothing.
        """
        self.by_square = 0.0
        self.by_row = 0.0
        self.longest = 0

    def copy(self) -> Group:
        twin = type(self).__new__(type(self))
        twin.base, twin.jobs, twin.dynamic = self.base, self.jobs, self.dynamic
        twin.by_token, twin.by_square, twin.by_row, twin.longest = (
            self.by_token,
            self.by_square,
            self.by_row,
            self.longest,
        )
        return twin

    def with_one(self, cost: JobCost) -> float:
        """Return the dynamic bytes, the base's own among them, with one job more."""
        return cost.alone_q + self.dynamic

    def change(self, cost: JobCost, sign: int) -> None:
        """Count a job's dynamic bytes in (sign 1) or out (sign -1)."""
        self.dynamic += sign * cost.dynamic_q

    def add_padded(self, cost: JobCost, sign: int) -> None:
        """Count a job's parts of the padded sums in (sign 1) or out (sign -1)."""
        self.by_token += sign * cost.rows * cost.token_bytes
        self.by_square += sign * cost.rows * cost.square_bytes
        self.by_row += sign * cost.rows * cost.row_bytes

    def padded_bytes(self, longest: int, token: float, square: float, row: float) -> float:
        length = -(-longest // ROUNDING) * ROUNDING
        return self.base.dynamic_bytes + length * (token + length * square) + row


class PlannedGroup(Group):
    """A group whose activations do not add up: the allocation plan is asked about all of it."""

    __slots__ = ("costs",)
    additive: ClassVar[bool] = False

    def __init__(self, base: BaseCost) -> None:
        super().__init__(base)
        self.costs: tuple[JobCost, ...] = ()

    def copy(self) -> PlannedGroup:
        twin = PlannedGroup(self.base)  # the plan is of packed steps: no padded sums
        twin.jobs, twin.dynamic, twin.longest = self.jobs, self.dynamic, self.longest
        twin.costs = self.costs
        return twin

    def with_one(self, cost: JobCost) -> float:
        """Return the planned dynamic bytes with one job more."""
        return self.base.dynamic_of((*self.costs, cost))

    def change(self, cost: JobCost, sign: int) -> None:
        """Count a job in (sign 1) or out (sign -1), and ask the plan anew."""
        if sign > 0:
            self.costs = (*self.costs, cost)
        else:
            at = self.costs.index(cost)
            self.costs = (*self.costs[:at], *self.costs[at + 1 :])
        self.dynamic = self.base.dynamic_of(self.costs)
