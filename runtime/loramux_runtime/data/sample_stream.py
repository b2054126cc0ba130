"""This module says which row is sample number n of a job.

Every row comes once an epoch, in a new order each time, without any state but n.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from loramux_traces.arrays import Ints
from loramux_traces.sampling import uniforms

#: A micro-batch may reach over the end of an epoch, so that two orders are in use at once.
_KEPT: Final = 2


class SampleStream:
    """Gives the samples 0, 1, 2, ... of a job over all its epochs.

    Sample n belongs to epoch n // n_rows. The order of an epoch depends on (n_rows, seed, epoch)
    alone: any sample can be asked for at any time, and a resumed job needs only its sample number.
    Raises ValueError for n_rows < 1, a negative seed or a negative sample.
    """

    def __init__(self, n_rows: int, seed: int, shuffle: bool = True) -> None:
        if n_rows < 1:
            raise ValueError(f"a stream needs at least one row, got {n_rows}")
        if seed < 0:
            raise ValueError(f"a seed must be 0 or more, got {seed}")
        self.n_rows = n_rows
        self.seed = seed
        self.shuffle = shuffle
        self._orders: dict[int, Ints] = {}

    def epoch(self, sample: int) -> int:
        """Return the epoch of a sample, counted from 0."""
        if sample < 0:
            raise ValueError(f"a sample number must be 0 or more, got {sample}")
        return sample // self.n_rows

    def row(self, sample: int) -> int:
        """Return the row of a sample, in [0, n_rows)."""
        epoch = self.epoch(sample)
        within = sample - epoch * self.n_rows
        return int(self._order(epoch)[within]) if self.shuffle else within

    def rows(self, start: int, count: int) -> list[int]:
        """Return the rows of samples start, ..., start + count - 1."""
        return [self.row(sample) for sample in range(start, start + count)]

    def _order(self, epoch: int) -> Ints:
        order = self._orders.get(epoch)
        if order is None:
            # Ranks of uniforms, not Generator.permutation: NumPy promises the bits of PCG64 only.
            order = np.argsort(uniforms(self.seed, f"data-order-{epoch}", self.n_rows), kind="stable").astype(np.int64)
            while len(self._orders) >= _KEPT:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = order
        return order
