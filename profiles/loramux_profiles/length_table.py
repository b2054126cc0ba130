"""This module holds distributions of sequence lengths as tables.

Lengths are integers from 1 to a maximum. Admission, rates and draws all read one table: because
quantiles, the CDF on the rounding grid, the strata and the draws come from one discrete table, the
two fidelities of the simulator see the same distribution exactly. Which named shape a job has is
decided in `loramux_profiles.lengths`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from loramux_traces.arrays import Floats, Ints

MAX_TABLE: Final = 131_072
"""Longest table; longer sequences are counted in units of several tokens."""
LOG_ZERO: Final = -745.0
"""log of an impossible event, as small as exp() can still tell from 0.

A sum of these stays finite.
"""
STRATA: Final = 512
"""Strata per job in rate fidelity.

The worst error of a step's mean is then 0.6% (measured when the method was chosen).
"""
ORDERS: Final = 251
"""Distinct orders of strata; prime, so that neighbouring seeds do not share one.

Two residents share one by chance with probability 1/251.
"""
_BINS: Final = 8192
_ROWS_EXACT: Final = 128
"""Rows up to which a sum of lengths is convolved; beyond, it is nearly normal."""


class Moments(NamedTuple):
    """Holds mean (tokens), E[L^2], variance and skewness of a length distribution."""

    mean: float
    square: float
    variance: float
    skewness: float


@dataclass(frozen=True, slots=True, eq=False)
class LengthDist:
    """Holds a distribution on unit, 2*unit, .. len(cdf)*unit tokens.

    `cdf[i]` = P(length <= (i + 1) * unit), ending at 1. `unit` is 1 unless the longest length
    exceeds MAX_TABLE. Objects are compared and hashed by identity: `length_dist` gives equal
    arguments the same object.
    """

    name: str
    cdf: Floats
    unit: int = 1

    @property
    def mean(self) -> float:
        """Return the mean length in tokens."""
        return moments(self).mean

    @property
    def longest(self) -> int:
        """Return the largest possible length in tokens."""
        return len(self.cdf) * self.unit

    @property
    def shortest(self) -> int:
        """Return the smallest possible length in tokens."""
        return int(np.argmax(self.cdf > 0.0) + 1) * self.unit

    def quantile(self, p: Floats | float) -> Ints:
        """Return the smallest length whose CDF reaches p, elementwise.

        p is in [0, 1]; 0 gives the shortest length.
        """
        index = np.searchsorted(self.cdf, np.maximum(p, 5e-324), side="left")
        return (np.minimum(index, len(self.cdf) - 1) + 1) * self.unit

    def cut(self, tokens: int) -> LengthDist:
        """Return the same with longer rows truncated to `tokens`, as trainers do.

        It is the same object where no row is longer.
        """
        return self if tokens >= self.longest else _cut(self, max(1, tokens // self.unit))

    def draw(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Ints:
        """Return independent lengths, an array of shape `size`."""
        return self.quantile(rng.random(size))

    def log_cdf_on_grid(self, max_tokens: int, step: int = 8) -> Floats:
        """Return log P(length <= g) at g = step, 2*step, .. up to `max_tokens` rounded up.

        It is LOG_ZERO where the event is impossible.
        """
        grid = np.arange(step, -(-max_tokens // step) * step + 1, step)
        index = np.minimum(grid // self.unit, len(self.cdf)) - 1
        cdf = np.where(index >= 0, self.cdf[np.maximum(index, 0)], 0.0)
        with np.errstate(divide="ignore"):
            return np.maximum(np.log(cdf), LOG_ZERO)

    def sum_quantile(self, rows: int, p: float) -> int:
        """Return quantile p of the sum of `rows` independent lengths, in tokens.

        It is exact for one row. Otherwise it is the convolution on 8192 bins that keep the mean
        (resolution about 0.1%), and beyond 128 rows the Cornish-Fisher expansion with the skewness.
        It is rounded up to a whole token.
        """
        return _sum_quantile(self, rows, p)

    def strata(self, rows: int, seed: int, n: int = STRATA) -> tuple[Floats, Floats]:
        """Return `n` equally likely micro-batches of `rows` rows, in an order set by `seed`.

        They are two arrays: the sums of lengths and the sums of squared lengths. Each row takes the
        mean of every n-quantile class of the length once, in an order of its own, so the means are
        exact. Treat the arrays as read-only.
        """
        tokens, squares = _strata(self, rows, n)
        order = permutation(n, seed % ORDERS)
        return tokens[order], squares[order]


@lru_cache(maxsize=4096)
def _cut(dist: LengthDist, size: int) -> LengthDist:
    cdf = dist.cdf[:size].copy()
    cdf[-1] = 1.0
    cdf.flags.writeable = False
    return LengthDist(dist.name, cdf, dist.unit)


@lru_cache(maxsize=4096)
def moments(dist: LengthDist) -> Moments:
    """Return the moments of a length distribution, computed once."""
    pmf = np.diff(dist.cdf, prepend=0.0)
    tokens = np.arange(1, len(pmf) + 1, dtype=np.float64) * dist.unit
    mean = float(pmf @ tokens)
    centred = tokens - mean
    variance = float(pmf @ (centred * centred))
    third = float(pmf @ (centred * centred * centred))
    skewness = third / variance**1.5 if variance > 0 else 0.0
    return Moments(mean, float(pmf @ (tokens * tokens)), variance, skewness)


@lru_cache(maxsize=1024)
def permutation(n: int, index: int) -> Ints:
    """Return a fixed random order of 0..n-1."""
    order = np.random.default_rng([n, index]).permutation(n)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=2048)
def _strata(dist: LengthDist, rows: int, n: int) -> tuple[Floats, Floats]:
    pmf = np.diff(dist.cdf, prepend=0.0)
    tokens = np.arange(1, len(pmf) + 1, dtype=np.float64) * dist.unit
    edges = np.linspace(0.0, 1.0, n + 1)
    knots = np.concatenate(([0.0], dist.cdf))
    # Integral of the quantile function, linear between the steps of the CDF: its differences are
    # conditional means.
    one = n * np.diff(np.interp(edges, knots, np.concatenate(([0.0], np.cumsum(pmf * tokens)))))
    two = n * np.diff(np.interp(edges, knots, np.concatenate(([0.0], np.cumsum(pmf * tokens * tokens)))))
    used = min(rows, _ROWS_EXACT)
    sums, squares = np.zeros(n), np.zeros(n)
    for row in range(used):
        order = permutation(n, ORDERS + row)
        sums += one[order]
        squares += two[order]
    # more rows than are worth adding one by one: the same shape, the spread of `rows` rows
    if rows > used:
        spread = (rows / used) ** 0.5
        sums = rows * one.mean() + (sums - used * one.mean()) * spread
        squares = rows * two.mean() + (squares - used * two.mean()) * spread
    sums.flags.writeable = squares.flags.writeable = False
    return sums, squares


@lru_cache(maxsize=8192)
def _sum_quantile(dist: LengthDist, rows: int, p: float) -> int:
    if rows == 1:
        return int(dist.quantile(p))
    shortest, longest = dist.shortest, dist.longest
    if shortest == longest:
        return rows * longest
    mean, _, variance, skewness = moments(dist)
    if rows > _ROWS_EXACT:
        from scipy.special import ndtri  # 0.1 s to import: only where needed

        z = float(ndtri(p))
        bend = skewness / rows**0.5 * (z * z - 1) / 6
        return int(np.ceil(rows * mean + (rows * variance) ** 0.5 * (z + bend)))
    width = max(1.0, rows * (longest - shortest) / (_BINS - 1))
    pmf = np.diff(dist.cdf, prepend=0.0)
    place = (np.arange(1, len(pmf) + 1) * dist.unit - shortest) / width
    keep = place >= 0
    left = np.floor(place[keep]).astype(np.int64)
    part = place[keep] - left
    # Each length is split between the two bins beside it, which keeps its mean.
    bins = np.bincount(left, pmf[keep] * (1 - part), minlength=_BINS)
    bins += np.bincount(np.minimum(left + 1, _BINS - 1), pmf[keep] * part, minlength=_BINS)
    total = np.fft.irfft(np.fft.rfft(bins[:_BINS]) ** rows, _BINS)
    index = int(np.searchsorted(np.cumsum(total), p - 1e-12))
    return int(np.ceil(rows * shortest + min(index, _BINS - 1) * width - 1e-6))
