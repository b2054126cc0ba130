"""Compute how sure a figure is: bootstrap intervals over seeds or jobs, and paired differences.

Every draw is seeded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from loramux_traces.arrays import Floats

LEVEL: Final = 0.95
_DRAWS: Final = 4000
#: A draw over many jobs costs memory in proportion to them, and its quantiles need fewer draws than
#: those of three seeds.
_JOB_DRAWS: Final = 1000


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
    values = values[np.isfinite(values)]
    return _interval(values, None, _seed_sums, len(values), "seeds" if len(values) > 1 else "")


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
    """Return the mean over the jobs of one run, with a circular block bootstrap interval.

    `values` are in order of submission. Jobs near in time wait behind the same others, so blocks of
    about sqrt(n) neighbours are drawn, not single jobs. The interval speaks of other draws of such
    jobs under this one arrival pattern: seeds say more. Fewer than 20 jobs: no interval.
    """
    return _interval(values, None, _job_sums, round(len(values) ** 0.5), "jobs" if len(values) >= 20 else "")


def change_over_seeds(values: Floats, base: Floats) -> Interval:
    """Return the ratio of means minus 1, of pairs.

    Both sides of a pair are drawn together, so that common luck cancels. Every draw takes a ratio
    of sums, not a difference over a fixed mean: it can never say less than -100%.
    """
    return _interval(values, base, _seed_sums, len(values), "seeds" if len(values) > 1 else "")


def change_over_jobs(values: Floats, base: Floats) -> Interval:
    """Return the change as `change_over_seeds` does, of the jobs of two runs of one trace.

    The jobs are in order of submission, and blocks are as in `over_jobs`.
    """
    return _interval(values, base, _job_sums, round(len(values) ** 0.5), "jobs" if len(values) >= 20 else "")


def _interval(
    values: Floats, base: Floats | None, sums: Callable[[Floats], Floats], independent: int, over: str
) -> Interval:
    """Return the mean of `values` with the interval that resampling by `sums` gives.

    With a `base` it is the change of `values` against it.
    """
    n = len(values)
    if n == 0 or (base is not None and base.sum() == 0):
        return Interval(np.nan, np.nan, np.nan, n, "")
    mean = float(values.mean()) if base is None else float(values.sum() / base.sum() - 1)
    if not over:
        return Interval(mean, np.nan, np.nan, n, "")
    if base is None and float(np.ptp(values)) == 0:
        return Interval(mean, mean, mean, n, over)  # all equal: no rounding noise of the draws
    drawn = sums(values)
    if base is None:
        draws = drawn / sums(np.ones(n))
    else:
        below = sums(base)
        draws = drawn[below != 0] / below[below != 0] - 1
    if not len(draws):
        return Interval(mean, np.nan, np.nan, n, "")
    low, high = np.quantile(draws, _tails(independent))
    return Interval(mean, float(low), float(high), n, over)


def _seed_sums(values: Floats) -> Floats:
    """Return sums of n values drawn with replacement.

    The same places are drawn for every array of one length.
    """
    n = len(values)
    sums: Floats = values[np.random.default_rng(0).integers(0, n, size=(_DRAWS, n))].sum(axis=1)
    return sums


def _job_sums(values: Floats) -> Floats:
    """Return sums of blocks of neighbours drawn with replacement, wrapped around the end.

    The same places are drawn for every array of one length.
    """
    n = len(values)
    block = round(n**0.5)
    cumulative = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: block - 1]]))])
    sums = cumulative[block:] - cumulative[:-block]
    picks = np.random.default_rng(0).integers(0, n, size=(_JOB_DRAWS, -(-n // block)))
    drawn: Floats = sums[picks].sum(axis=1)
    return drawn


def _tails(n: int) -> tuple[float, float]:
    """Return the percentiles to take from a bootstrap of `n` independent parts.

    They are moved out for small n.
    """
    t = float(stats.t.ppf((1 + LEVEL) / 2, max(1, n - 1)))
    tail = float(stats.norm.cdf(-t * (n / max(1, n - 1)) ** 0.5))
    return tail, 1 - tail
