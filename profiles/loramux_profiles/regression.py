"""This module fits non-negative least squares on relative errors, and cross-validates by point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import nnls

from loramux_traces.arrays import Floats, Ints

REWEIGHTS: Final = 8
SMALLEST: Final = 0.01
"""Relative error below which a point counts by its square.

The fit then minimises about the mean absolute error, and one step that the machine was busy in does
not bend it.
"""


def relative_nnls(features: Floats, actual: Floats) -> Floats:
    """Return coefficients >= 0 with the least relative errors.

    Shapes: features [n, p], actual [n] > 0 -> [p]. Columns are scaled to comparable size first;
    those of zeros get 0. Raises ValueError where there is nothing to fit.
    """
    if not len(actual) or not np.all(actual > 0):
        raise ValueError("a fit needs measurements, all above 0")
    rows = features / actual[:, None]
    size = np.sqrt((rows**2).mean(axis=0))
    used = size > 0
    scaled = rows[:, used] / size[used]
    weights = np.ones(len(actual))
    found: Floats = np.zeros(scaled.shape[1])
    for _ in range(REWEIGHTS):
        root = np.sqrt(weights)
        found = nnls(scaled * root[:, None], root, maxiter=50 * max(10, scaled.shape[1]))[0]
        weights = 1.0 / np.maximum(np.abs(scaled @ found - 1.0), SMALLEST)
    result = np.zeros(features.shape[1])
    result[used] = found / size[used]
    return result


def folds(n: int, k: int, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """Yield (train, test) indices of k folds; each point is tested once."""
    order = np.random.default_rng(seed).permutation(n)
    for part in range(k):
        test = np.sort(order[part::k])
        if len(test) and len(test) < n:
            yield np.setdiff1d(order, test), test


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Says how predictions differ from what was measured, as shares of what was measured."""

    n: int
    mape: float
    """Mean absolute error."""
    worst_under: float
    """Largest share that a prediction was too low by; 0 where none was."""
    worst_over: float
    median: float
    """Median absolute error."""

    def to_dict(self) -> dict[str, float]:
        """Return the errors as a record holds them."""
        return {
            "n": self.n,
            "mape": self.mape,
            "worst_under": self.worst_under,
            "worst_over": self.worst_over,
            "median": self.median,
        }


def errors(actual: Floats, predicted: Floats) -> Errors:
    """Return the errors of paired values, where actual is above 0.

    Raises ValueError where there are none.
    """
    if not len(actual):
        raise ValueError("no points to compare")
    relative = predicted / actual - 1.0
    size = np.abs(relative)
    return Errors(
        n=len(actual),
        mape=float(size.mean()),
        worst_under=float(max(0.0, -relative.min())),
        worst_over=float(max(0.0, relative.max())),
        median=float(np.median(size)),
    )


def cross_validated(features: Floats, actual: Floats, k: int, seed: int = 0) -> Floats:
    """Return the prediction of each point by a fit to the folds without it: [n]."""
    out = np.full(len(actual), np.nan)
    for train, test in folds(len(actual), k, seed):
        out[test] = features[test] @ relative_nnls(features[train], actual[train])
    return out
