"""This module gives distributions of sequence lengths by name, scaled to a job's mean.

The tables themselves are in `loramux_profiles.length_table`.

All shapes are assumed: no data set ships with the project. `alpaca`, `sql` and `llava` carry the
names of the length distributions of arXiv 2312.02515's evaluation (`train` is the fourth) and
follow what is known of such data: instruction data moderately skewed, Spider-like SQL short and
narrow, LLaVA with a constant part (image tokens), and one broad mix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import count
from math import ceil, log, sqrt
from sys import modules
from typing import Final

import numpy as np

from loramux_profiles.length_table import MAX_TABLE, STRATA, LengthDist, Moments, moments
from loramux_profiles.normal import cdf as normal_cdf
from loramux_profiles.roots import root
from loramux_traces.arrays import Floats, Ints
from loramux_traces.errors import UsageError

DEFAULT_P95: Final = 2.0
"""p95 / mean of the lognormal that a job gets if it says only its mean length.

It is assumed; instruction data sets lie at 1.7 to 2.5.
"""
MAX_P95: Final = 3.8
"""Largest p95 / mean that a lognormal reaches (3.87 in the limit).

Above it the most skewed lognormal is used.
"""
TAIL: Final = 8.0
"""Lengths are cut at this multiple of the mean (or twice the p95, if larger)."""
__all__ = [
    "NAMES",
    "STRATA",
    "Floats",
    "Ints",
    "LengthDist",
    "Moments",
    "describe",
    "is_length_shape",
    "length_dist",
    "moments",
]
_Z95: Final = 1.6448536269514722


@dataclass(frozen=True, slots=True)
class Shape:
    """Holds a shape with mean about 1: `cdf(x)` of x in means, cut at `longest`."""

    text: str
    cdf: Callable[[Floats], Floats]
    longest: float


_PLAIN_CALLS: Final = 60
"""Calls of the normal CDF that are answered without scipy.

Without scipy a call takes 0.4 ms and with it 0.06 ms, but scipy takes 0.1 s to import.
"""
_calls: Final = count()


def _phi(x: Floats) -> Floats:
    """Return the normal CDF, the same to the last digit with scipy and without."""
    if "scipy.special" not in modules and next(_calls) < _PLAIN_CALLS:
        return normal_cdf(x)
    from scipy.special import ndtr

    result: Floats = ndtr(x)
    return result


def _lognormal(sigma: float, fixed: float = 0.0) -> Callable[[Floats], Floats]:
    """Return the CDF of fixed + (1 - fixed) * lognormal of mean 1."""

    def cdf(x: Floats) -> Floats:
        part = np.maximum((x - fixed) / (1 - fixed), 1e-300)
        return _phi((np.log(part) + sigma * sigma / 2) / sigma)

    return cdf


def sigma_for(ratio: float) -> float:
    """Return the sigma of the lognormal with p95 / mean = ratio (clamped to MAX_P95).

    It is the smaller root of z*s - s^2/2 = log(ratio).
    """
    return _Z95 - sqrt(_Z95 * _Z95 - 2 * log(min(ratio, MAX_P95)))


SHAPES: Final[dict[str, Shape]] = {
    "lognormal": Shape(f"lognormal; p95 = seq_len_p95, or {DEFAULT_P95:g} x mean", _lognormal(sigma_for(2.0)), TAIL),
    "uniform": Shape("uniform from 0.5 to 1.5 x mean", lambda x: np.clip(x - 0.5, 0.0, 1.0), 1.5),
    "exponential": Shape("exponential, cut at 8 x mean", lambda x: 1 - np.exp(-np.maximum(x, 0.0)), TAIL),
    "alpaca": Shape("instructions: 30% constant prompt, lognormal sigma 0.6", _lognormal(0.6, 0.3), 6.0),
    "sql": Shape("Spider-like: 40% constant schema, lognormal sigma 0.4", _lognormal(0.4, 0.4), 4.0),
    "llava": Shape("image and text: 60% constant, lognormal sigma 0.6", _lognormal(0.6, 0.6), 5.0),
    "train": Shape("a broad mix: lognormal sigma 0.8", _lognormal(0.8), TAIL),
}
NAMES: Final = ("constant", *SHAPES)


def is_length_shape(name: str) -> bool:
    """Return whether a name (of the `dataset` column, say) is also the name of a shape."""
    return name in NAMES


def length_dist(seq_len: float, seq_len_p95: float | None = None, name: str | None = None) -> LengthDist:
    """Return the length distribution of mean `seq_len` tokens.

    Its discrete mean agrees to 1e-6 (relative). With only the mean it is lognormal with p95 = 2 x
    mean, cut at 8 x mean. With `seq_len_p95` it is the lognormal with that p95 (before cutting and
    rounding; p95 = mean is constant, above 3.8 x mean the most skewed one). A name fixes the shape,
    and p95 then counts for `lognormal` only. Equal arguments give the same object. Raises
    UsageError for an unknown name.
    """
    return _length_dist(float(seq_len), seq_len_p95, name)


@lru_cache(maxsize=4096)
def _length_dist(seq_len: float, seq_len_p95: float | None, name: str | None) -> LengthDist:
    if name is not None and name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown length distribution {name!r}{hint} (known: {', '.join(NAMES)})")
    if seq_len < 1:
        raise UsageError(f"a mean length must be at least 1 token, not {seq_len!r}")
    shape = SHAPES["lognormal" if name is None or name == "constant" else name]
    if name in (None, "lognormal") and seq_len_p95 is not None:
        ratio = max(1.0, seq_len_p95 / seq_len)
        sigma = sigma_for(ratio)
        shape = Shape("", _lognormal(max(sigma, 1e-9)), max(TAIL, 2 * ratio))
        if sigma < 1e-3:
            name = "constant"
    if name == "constant" or seq_len <= 1 + 1e-9:
        return _constant(seq_len)
    return _scaled(name or "lognormal", shape, seq_len)


def _constant(mean: float) -> LengthDist:
    """Return a distribution of one length; a mean between two lengths mixes the two."""
    unit = max(1, ceil(mean / MAX_TABLE))
    low = int(mean // unit)
    part = mean / unit - low
    if low == 0:  # this cannot be: unit > 1 only for means far above it
        low, part = 1, 0.0
    cdf = np.zeros(low + (1 if part > 0 else 0))
    cdf[low - 1] = 1 - part
    cdf[-1] = 1.0
    return _frozen("constant", cdf, unit)


def _scaled(name: str, shape: Shape, mean: float) -> LengthDist:
    """Return lengths rounded to whole units, at least one.

    The scale is solved so that the mean of the table is right.
    """
    unit = max(1, ceil(shape.longest * mean / MAX_TABLE))
    goal = mean / unit
    size = max(2, min(MAX_TABLE, ceil(shape.longest * goal)))
    upper: Floats = np.arange(1, size + 1, dtype=np.float64) + 0.5

    def table(scale: float) -> Floats:
        cdf = shape.cdf(upper / scale)
        return np.asarray(cdf / cdf[-1], dtype=np.float64)

    def miss(scale: float) -> float:
        return float(size - table(scale).sum()) + 1 - goal

    low, high = 0.05, 1.2 * goal + 0.5
    while miss(high) < 0:
        high *= 1.3
        if high > 100 * goal:
            # not reachable with the shapes above; a constant keeps the mean right
            return _constant(mean)
    a, b = max(low, 0.8 * goal - 1), high
    if miss(a) > 0:
        a = low
    return _frozen(name, table(root(miss, a, b, xtol=1e-9 * goal, rtol=1e-9)), unit)


def _frozen(name: str, cdf: Floats, unit: int) -> LengthDist:
    cdf = np.asarray(np.minimum(np.maximum.accumulate(cdf), 1.0), dtype=np.float64)
    cdf[-1] = 1.0
    cdf.flags.writeable = False
    return LengthDist(name, cdf, unit)


def describe() -> list[tuple[str, str]]:
    """Return (name, one line) of every shape, for help texts."""
    return [("constant", "every sequence as long as the mean"), *((name, shape.text) for name, shape in SHAPES.items())]
