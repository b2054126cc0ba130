"""Measure how well two sets of figures agree: relative error, distribution distance, ranking.

It is used for simulated against real.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from loramux_traces.arrays import Floats


def relative_errors(predicted: Floats, actual: Floats) -> Floats:
    """Return (predicted - actual) / actual where actual is not 0 and both are finite."""
    use = np.isfinite(predicted) & np.isfinite(actual) & (actual != 0)
    errors: Floats = (predicted[use] - actual[use]) / actual[use]
    return errors


def mape(predicted: Floats, actual: Floats) -> float | None:
    """Return the mean absolute relative error (a fraction, not percent).

    None when nothing can be compared.
    """
    errors = relative_errors(predicted, actual)
    return float(np.abs(errors).mean()) if len(errors) else None


def ks_distance(a: Floats, b: Floats) -> float | None:
    """Return the Kolmogorov-Smirnov distance of two samples.

    It is the largest gap between the two empirical CDFs, 0 to 1; None when either is empty.
    """
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        return None
    # scipy's ks_2samp is not used: its p-value, which is not needed here, warns for samples of one.
    both = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(side), both, side="right") / len(side) for side in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def wasserstein(a: Floats, b: Floats) -> float | None:
    """Return the Wasserstein distance of two samples, in their unit.

    It is how far values must move, in the mean, for one empirical distribution to become the other;
    None when either is empty.
    """
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not len(a) or not len(b):
        return None
    return float(stats.wasserstein_distance(a, b))


def kendall_tau(a: Floats, b: Floats) -> float | None:
    """Return Kendall's tau-b of two rankings of the same things.

    1 is the same order, -1 the reversed one; None for fewer than two or all tied.
    """
    use = np.isfinite(a) & np.isfinite(b)
    a, b = a[use], b[use]
    if len(a) < 2 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return float(stats.kendalltau(a, b).statistic)
