"""This module bounds memory from above: how far a peak may lie above its prediction.

Until there are measurements the bound is a margin on the dynamic part. With measurements it is
split conformal prediction on log(actual / predicted): for exchangeable steps the next one exceeds
the bound with probability at most alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

ALPHA: Final = 0.01
TRUST: Final = 1.25
"""A step without a trial step may have this many times the largest measured number of tokens."""


def points_needed(alpha: float = ALPHA) -> int:
    """Return the fewest measurements for a finite bound at `alpha`: 99 for 1%."""
    _check(alpha)
    return math.ceil(1 / alpha - 1e-9) - 1


def conformal_log_ratio(actual: Sequence[float], predicted: Sequence[float], alpha: float = ALPHA) -> float:
    """Return the quantile of log(actual / predicted) that a further step rarely exceeds.

    A further, exchangeable, step exceeds it with probability at most `alpha`. It is the ceil((n +
    1)(1 - alpha))-th smallest of n scores; it is infinite where n is too small for that. An
    out-of-memory is a censored observation: pass infinity as its actual, and it counts as larger
    than any prediction. Raises ValueError for lengths that differ and for values that are not
    positive.
    """
    _check(alpha)
    if len(actual) != len(predicted):
        raise ValueError(f"{len(actual)} actual values for {len(predicted)} predictions")
    a, p = np.asarray(actual, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if not (np.all(a > 0) and np.all(p > 0) and np.all(np.isfinite(p))):
        raise ValueError("actual and predicted bytes must be positive")
    rank = math.ceil((len(a) + 1) * (1 - alpha) - 1e-9)
    if rank > len(a):
        return math.inf
    return float(np.sort(np.log(a / p))[rank - 1])


def conformal_margin(actual: Sequence[float], predicted: Sequence[float], alpha: float = ALPHA) -> float:
    """Return the same quantile as a margin m: actual <= (1 + m) * predicted.

    It is never negative, and it is infinite with too few points.
    """
    ratio = conformal_log_ratio(actual, predicted, alpha)
    return math.inf if ratio == math.inf else max(0.0, math.expm1(ratio))


def trusted_tokens(measured: Sequence[float]) -> float:
    """Return the most tokens of a step that the model may be asked about without a trial step.

    It is 0 where nothing was measured.
    """
    return TRUST * max(measured, default=0.0)


def raised_margin(margin: float, dynamic_bytes: float, static_bytes: float, capacity_bytes: float) -> float:
    """Return the margin after an out-of-memory, which is a censored observation.

    It is what would have forbidden the step, plus 1%, and it is never below the margin so far.
    """
    if dynamic_bytes <= 0:
        return margin
    return max(margin, 1.01 * max(0.0, capacity_bytes - static_bytes) / dynamic_bytes - 1)


def _check(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha!r}")
