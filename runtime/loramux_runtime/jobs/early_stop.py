"""This module stops jobs early by patience, and guesses how near that is.

The guess only ever reorders jobs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

POINTS: Final = 20
"""Losses that are needed before a prediction says anything (as in mLoRA)."""
PREDICT_EVERY: Final = 20
"""Losses from one prediction to the next."""
FITTED: Final = 500
"""Losses that a prediction looks at."""
KEPT_LOSSES: Final = FITTED + PREDICT_EVERY - 1
"""Losses that are kept: those of the latest prediction, and those since."""


class LossTail:
    """A loss tail knows how many losses there were, and the last of them.

    That is what a prediction needs, however long a job trains.
    """

    def __init__(self, seen: int = 0, last: Iterable[float] = ()) -> None:
        self.seen = seen
        self.last = deque(last, maxlen=KEPT_LOSSES)

    def add(self, loss: float) -> None:
        """Add the next loss of the job."""
        self.seen += 1
        self.last.append(loss)

    @property
    def epoch(self) -> int:
        """The number of the prediction that is due."""
        return self.seen // PREDICT_EVERY

    def fitted(self) -> list[float]:
        """Return the losses of whole epochs only.

        So what a policy is told does not depend on when anybody asked first.
        """
        return list(self.last)[: len(self.last) - self.seen % PREDICT_EVERY][-FITTED:]


class Patience:
    """Patience stops a job after `patience` evaluations in a row without an improvement.

    An improvement is a loss that is lower than the best one by more than `min_improvement`.
    """

    def __init__(self, patience: int | None, min_improvement: float) -> None:
        self._patience, self._least = patience, min_improvement
        self.best: float | None = None
        self.bad = 0

    def see(self, loss: float) -> bool:
        """Note an evaluation, and return True when the job is to stop."""
        if self.best is None or loss < self.best - self._least:
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        return self._patience is not None and self.bad >= self._patience


def predicted_improvement(losses: Sequence[float], ahead: int) -> float | None:
    """Predict how much the loss will fall over `ahead` more points.

    The fit is loss(t) = 1 / (b0 t + b1) + b2, least squares, b >= 0. Return None with fewer than 20
    finite points. Source: SLAQ (Zhang et al., SoCC 2017), as in arXiv 2312.02515.
    """
    from scipy.optimize import least_squares

    values = np.asarray(losses, dtype=np.float64)
    t = np.flatnonzero(np.isfinite(values)).astype(np.float64)
    values = values[np.isfinite(values)]
    if len(values) < POINTS:
        return None
    low = float(values.min())
    start = [1e-3, 1.0 / max(values[0] - low, 1e-3), max(low, 0.0)]

    def miss(b: np.ndarray) -> np.ndarray:
        result: np.ndarray = 1.0 / (b[0] * t + b[1]) + b[2] - values
        return result

    fit = least_squares(miss, start, bounds=([0.0, 1e-9, 0.0], [np.inf, np.inf, np.inf])).x
    now, then = (1.0 / (fit[0] * at + fit[1]) for at in (t[-1], t[-1] + ahead))
    return float(now - then)


def stop_likelihood(losses: Sequence[float], ahead: int, least: float) -> float:
    """Return how likely the loss is not to improve by `least` over `ahead` points, in [0, 1].

    It is 1 / (1 + predicted fall / `least`): 1 where no fall is predicted, 1/2 where the fall is
    `least`. It is 0 where nothing is known. `least` 0 is read as a thousandth of the last loss.
    """
    gain = predicted_improvement(losses, ahead)
    if gain is None:
        return 0.0
    wanted = least or 1e-3 * abs(losses[-1])
    return float(1.0 / (1.0 + max(gain, 0.0) / max(wanted, 1e-12)))
