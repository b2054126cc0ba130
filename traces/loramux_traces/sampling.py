"""Draw random numbers by (seed, purpose, index).

The draw of a job does not depend on how many jobs there are. Every column has its own stream, named
by its purpose, and job i takes the i-th number of it. Only raw bits of PCG64 are used, which NumPy
promises never to change; everything else is an inverse distribution function of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

import numpy as np

from loramux_traces.arrays import Floats

T = TypeVar("T")


def uniforms(seed: int, purpose: str, n: int) -> Floats:
    """Draw `n` numbers in (0, 1), never 0 or 1.

    The first k of them are the same for every n >= k.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, crc32(purpose.encode())])).random_raw(n)
    values: Floats = ((np.asarray(bits, dtype=np.uint64) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return values


def exponentials(seed: int, purpose: str, n: int) -> Floats:
    """Draw `n` exponential numbers of mean 1."""
    values: Floats = -np.log1p(-uniforms(seed, purpose, n))
    return values


def pick(u: Floats, choices: Sequence[tuple[T, float]]) -> list[T]:
    """Pick one of the (value, weight) choices for each u; weights need not sum to 1."""
    weights = np.array([weight for _, weight in choices], dtype=np.float64)
    edges = np.cumsum(weights / weights.sum())
    index = np.minimum(np.searchsorted(edges, u, side="right"), len(choices) - 1)
    return [choices[i][0] for i in index.tolist()]


def from_quantiles(u: Floats, table: Sequence[tuple[float, float]]) -> Floats:
    """Apply the inverse distribution function that a table of quantiles gives.

    It interpolates (probability, value) pairs linearly and is flat beyond the last.
    """
    p, q = np.array(table, dtype=np.float64).T
    values: Floats = np.interp(u, p, q)
    return values
