"""This module keeps the fitted models right while the executor runs.

What the executor observes moves a factor and a margin. A machine is shared, clocks change, a
library is updated: the shape of a fitted model stays, but its scale drifts. The factor is a
least-squares estimate of log(observed / predicted) that forgets; the margin follows adaptive
conformal inference (Gibbs and Candes, NeurIPS 2021): every step above the bound raises it, every
step below lowers it a little, so that the share above tends to alpha whatever the drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from loramux_profiles.bounds import ALPHA
from loramux_profiles.step_point import StepPoint

FORGETTING: Final = 0.98
"""Weight of a step's observation after the next one: about the last 50 steps count."""
PRIOR_STEPS: Final = 4.0
"""Number of observations that the fit itself counts as."""
CLIP: Final = 1.0
"""Largest log ratio that is believed of one step, because a busy machine is no new law."""


@dataclass(slots=True)
class LogRatio:
    """Keeps a running mean of log(observed / predicted), which is 0 at the start.

    It is recursive least squares with forgetting.
    """

    forgetting: float = FORGETTING
    _sum: float = 0.0
    _weight: float = PRIOR_STEPS

    @property
    def factor(self) -> float:
        """Return the factor that predictions are to be multiplied by."""
        return math.exp(self._sum / self._weight)

    def see(self, observed: float, predicted: float) -> None:
        """Take in one pair of the observed value and the unscaled prediction.

        Values that are not positive and finite are passed over.
        """
        if not (0 < observed < math.inf and 0 < predicted < math.inf):
            return
        ratio = min(CLIP, max(-CLIP, math.log(observed / predicted)))
        self._sum = self.forgetting * self._sum + ratio
        self._weight = self.forgetting * self._weight + 1.0


@dataclass(slots=True, kw_only=True)
class OnlineRefit:
    """Corrects predictions of steps, and the bound on their bytes, by the executor's own steps."""

    fitted_s: Callable[[StepPoint], float]
    """Seconds of a step by the fitted time model."""
    fitted_bytes: Callable[[StepPoint], float]
    """Dynamic bytes of a step by the fitted memory model."""
    margin: float
    """Margin of the fit: the bound is (1 + margin) times the prediction."""
    alpha: float = ALPHA
    rate: float = 0.01
    """Step size of the margin, as a log.

    A step above the bound raises the margin by at least 1 - alpha times this; a step below lowers
    it by alpha times this.
    """
    time_ratio: LogRatio = field(default_factory=LogRatio)
    bytes_ratio: LogRatio = field(default_factory=LogRatio)
    steps: int = 0
    above: int = 0
    """Number of steps above the bound as it was when they ran."""
    _lasting: float = field(init=False)
    """Log of one plus the margin that the share above the bound asks for.

    It is never below the fit's own.
    """
    _shift: float = field(init=False, default=0.0)
    """Log that steps above the bound have added to the margin for a while.

    It stays until the factor follows, or until the step is forgotten as a freak.
    """

    def __post_init__(self) -> None:
        if self.margin < 0 or not 0 < self.alpha < 1:
            raise ValueError(f"margin {self.margin!r} and alpha {self.alpha!r} make no bound")
        self._lasting = math.log1p(self.margin)

    def seconds(self, point: StepPoint) -> float:
        """Return the corrected seconds of a step."""
        return self.fitted_s(point) * self.time_ratio.factor

    def dynamic_bytes(self, point: StepPoint) -> float:
        """Return the corrected dynamic bytes that are expected of a step."""
        return self.fitted_bytes(point) * self.bytes_ratio.factor

    def bound_bytes(self, point: StepPoint) -> float:
        """Return the bound that a step's dynamic bytes stay below, but for a share of alpha."""
        return self.dynamic_bytes(point) * (1.0 + self.margin_now)

    @property
    def margin_now(self) -> float:
        """Return the margin as the steps have moved it."""
        return math.expm1(self._lasting + self._shift)

    def see(self, point: StepPoint, *, seconds: float | None = None, dynamic_bytes: float | None = None) -> None:
        """Take in one step as it was observed (None: not measured)."""
        if seconds is not None:
            self.time_ratio.see(seconds, self.fitted_s(point))
        if dynamic_bytes is None or dynamic_bytes <= 0:
            return
        bound = self.bound_bytes(point)
        exceeded = dynamic_bytes > bound > 0
        self.steps += 1
        self.above += int(exceeded)
        before = self.bytes_ratio.factor
        self.bytes_ratio.see(dynamic_bytes, self.fitted_bytes(point))
        followed = max(0.0, math.log(self.bytes_ratio.factor / before))
        self._shift = max(0.0, self.bytes_ratio.forgetting * self._shift - followed)
        move = self.rate * (float(exceeded) - self.alpha)
        self._lasting = max(math.log1p(self.margin), self._lasting + move)
        if exceeded:  # the same step must never exceed again: memory that overflows stops jobs
            self._shift += max(0.0, math.log(dynamic_bytes / self.bound_bytes(point)))
