"""Compute how sure a figure is: intervals over seeds or over jobs, and paired differences.

Over seeds they are bootstrap intervals, whose draws are seeded; over jobs, batch means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from loramux_traces.arrays import Floats
from loramux_traces.batches import batch_means

LEVEL: Final = 0.95
_DRAWS: Final = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """An Interval is a mean with its 95% interval.

    `over`: of what (`seeds`, `jobs`, `repeats`), or empty (one value: no interval).
    """

    mean: float
    low: float
    high: float
    n: int
    over: str

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


def over_seeds(values: Floats) -> Interval:
    """Return the mean of one value per seed with an expanded percentile bootstrap interval.

    The plain percentile interval is too narrow for few values; the percentiles are moved out as far
    as Student's t asks for (Hesterberg, The American Statistician 69(4), 2015, section 3.3). For 2
    or 3 seeds that is the whole range of the values: a resampling cannot say more. One value: no
    interval.
    """
    return _resampled(values[np.isfinite(values)], None)


def of_mean(values: Floats) -> Interval:
    """Return the mean of repeated measurements with Student's 95% interval.

    It is for a handful of runs on one machine, whose noise is near normal. One value: no interval.
    """
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else np.nan, np.nan, np.nan, n, "")
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half, n, "repeats")


def over_jobs(values: Floats) -> Interval:
    """Return the mean over the jobs of one trace, with an interval by batch means.

    `values` are in order of submission. Jobs near in time wait behind the same others, so that the
    means of a few long batches are compared, not single jobs (`loramux_traces.batches`: why, and
    how often the interval holds the truth). It speaks of other jobs that come in the same way.
    Where the load is high it is too narrow still. Fewer than 20 jobs: no interval.
    """
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else np.nan
    return of_batches(batch_means(values), mean, len(values))


def of_batches(batches: Floats, mean: float, n: int) -> Interval:
    """Return the mean of `n` jobs with Student's 95% interval from the means of their batches."""
    half = _batch_half(batches)
    return Interval(mean, mean - half, mean + half, n, "jobs" if np.isfinite(half) else "")


def _batch_half(batches: Floats) -> float:
    k = len(batches)
    if k < 2:
        return float("nan")
    return float(stats.t.ppf((1 + LEVEL) / 2, k - 1) * batches.std(ddof=1) / k**0.5)


def change_over_seeds(values: Floats, base: Floats) -> Interval:
    """Return the ratio of means minus 1, of pairs.

    Both sides of a pair are drawn together, so that common luck cancels. Every draw takes a ratio
    of sums, not a difference over a fixed mean: it can never say less than -100%.
    """
    return _resampled(values, base)


def change_over_jobs(values: Floats, base: Floats) -> Interval:
    """Return the change as `change_over_seeds` does, of the jobs of two runs of one trace.

    The jobs are the same, in order of submission; batches are as in `over_jobs`.
    """
    return change_of_batches(batch_means(values), batch_means(base), (values.sum(), base.sum()), len(values))


def change_of_batches(values: Floats, base: Floats, totals: tuple[float, float], n: int) -> Interval:
    """Return the ratio of two totals minus 1, with an interval from the batches of both.

    The interval is Student's, of the batches' residuals from the ratio (the ratio estimator;
    Cochran, Sampling Techniques, 3rd edition 1977, section 6.4); it never says less than -100%.
    """
    total, below = totals
    if n == 0 or not below > 0:
        return Interval(np.nan, np.nan, np.nan, n, "")
    ratio = total / below
    half = _batch_half((values - ratio * base) / base.mean()) if len(values) == len(base) > 0 else np.nan
    low, high = max(-1.0, ratio - 1 - half), ratio - 1 + half
    known = bool(np.isfinite(half))
    return Interval(ratio - 1, low if known else np.nan, high, n, "jobs" if known else "")


def _resampled(values: Floats, base: Floats | None) -> Interval:
    """Return the mean of the values of several seeds, with the interval that resampling gives.

    With a `base` it is the change of `values` against it.
    """
    n = len(values)
    over = "seeds" if n > 1 else ""
    if n == 0 or (base is not None and base.sum() == 0):
        return Interval(np.nan, np.nan, np.nan, n, "")
    mean = float(values.mean()) if base is None else float(values.sum() / base.sum() - 1)
    if not over:
        return Interval(mean, np.nan, np.nan, n, "")
    if base is None and float(np.ptp(values)) == 0:
        return Interval(mean, mean, mean, n, over)  # all equal: no rounding noise of the draws
    drawn = _sums(values)
    if base is None:
        draws = drawn / n
    else:
        below = _sums(base)
        draws = drawn[below != 0] / below[below != 0] - 1
    if not len(draws):
        return Interval(mean, np.nan, np.nan, n, "")
    low, high = np.quantile(draws, _tails(n))
    return Interval(mean, float(low), float(high), n, over)


def _sums(values: Floats) -> Floats:
    """Return sums of n values drawn with replacement.

    The same places are drawn for every array of one length.
    """
    n = len(values)
    sums: Floats = values[np.random.default_rng(0).integers(0, n, size=(_DRAWS, n))].sum(axis=1)
    return sums


def _tails(n: int) -> tuple[float, float]:
    """Return the percentiles to take from a bootstrap of `n` values.

    They are moved out for small n.
    """
    t = float(stats.t.ppf((1 + LEVEL) / 2, max(1, n - 1)))
    tail = float(stats.norm.cdf(-t * (n / max(1, n - 1)) ** 0.5))
    return tail, 1 - tail
