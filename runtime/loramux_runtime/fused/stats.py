"""Routers leave sums over tokens behind for auxiliary losses, per group of jobs.

The sums travel as outputs of a layer, not as side effects, so that recomputation in the backward
pass keeps their graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Key = tuple[int, int]
"""(index of the group in the step, experts of the router)."""


class RouterStats:
    """Router statistics are kept for each (group, number of experts).

    They are the sum of the routers' statistics [jobs, n], and how many routers there were.
    """

    def __init__(self) -> None:
        self.sums: dict[Key, Tensor] = {}
        self.routers: dict[Key, int] = {}

    def add(self, group: int, experts: int, values: Tensor, routers: int = 1) -> None:
        """Add the sums of one router (or one layer)."""
        key = (group, experts)
        self.sums[key] = self.sums[key] + values if key in self.sums else values
        self.routers[key] = self.routers.get(key, 0) + routers

    def of_group(self, group: int) -> list[tuple[int, Tensor, int]]:
        """Return (experts, sums, routers) of one group, for each number of experts."""
        return [(key[1], value, self.routers[key]) for key, value in self.sums.items() if key[0] == group]

    def unpack(self) -> tuple[list[tuple[Key, int]], tuple[Tensor, ...]]:
        """Return the keys with their router counts, and the tensors in the same order."""
        return [(key, self.routers[key]) for key in self.sums], tuple(self.sums.values())

    def take(self, keys: Sequence[tuple[Key, int]], values: Sequence[Tensor]) -> None:
        """Add the keys and tensors that `unpack` gave."""
        for (key, routers), value in zip(keys, values, strict=True):
            self.add(key[0], key[1], value, routers)
