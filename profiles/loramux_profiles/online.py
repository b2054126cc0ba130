"""Keeping the fitted models right while the executor runs: what it observes moves a factor and a margin.

A machine is shared, clocks change, a library is updated: the shape of a fitted model stays, its scale drifts. The
factor is a least-squares estimate of log(observed / predicted) that forgets; the margin follows adaptive conformal
inference (Gibbs and Candes, NeurIPS 2021): every step above the bound raises it, every step below lowers it a little, so that the
share above tends to alpha whatever the drift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from loramux_profiles.bounds import ALPHA

FORGETTING: Final = 0.98
"""Weight of a step's observation after the next one: about the last 50 steps count."""
PRIOR_STEPS: Final = 4.0
"""How many observations the fit itself counts as."""
CLIP: Final = 1.0
"""Largest log ratio believed of one step: a busy machine is no new law."""


@dataclass(slots=True)
class LogRatio:
    """Running mean of log(observed / predicted), recursive least squares with forgetting; 0 at the start."""

    forgetting: float = FORGETTING
    _sum: float = 0.0
    _weight: float = PRIOR_STEPS

    @property
    def factor(self) -> float:
        """What predictions are to be multiplied by."""
        return math.exp(self._sum / self._weight)

    def see(self, observed: float, predicted: float) -> None:
        """One pair, of the unscaled prediction. Values that are not positive and finite are passed over."""
        if not (0 < observed < math.inf and 0 < predicted < math.inf):
            return
        ratio = min(CLIP, max(-CLIP, math.log(observed / predicted)))
        self._sum = self.forgetting * self._sum + ratio
        self._weight = self.forgetting * self._weight + 1.0


@dataclass(slots=True)
class OnlineRefit:
    """Factors on step seconds and dynamic bytes, and the bytes' margin, from the executor's own steps."""

    margin: float
    """Of the fit: the bound is (1 + margin) times the prediction."""
    alpha: float = ALPHA
    rate: float = 0.01
    """How far one step above the bound raises the margin (as a log), times 1 - alpha."""
    seconds: LogRatio = field(default_factory=LogRatio)
    bytes: LogRatio = field(default_factory=LogRatio)
    steps: int = 0
    above: int = 0
    """Steps above the bound as it was when they ran."""

    def __post_init__(self) -> None:
        if self.margin < 0 or not 0 < self.alpha < 1:
            raise ValueError(f"margin {self.margin!r} and alpha {self.alpha!r} make no bound")

    def time(self, predicted_s: float) -> float:
        """A prediction of seconds, corrected."""
        return predicted_s * self.seconds.factor

    def dynamic(self, predicted_bytes: float) -> float:
        """A prediction of dynamic bytes, corrected."""
        return predicted_bytes * self.bytes.factor

    def bound(self, predicted_bytes: float) -> float:
        """The upper bound on them."""
        return self.dynamic(predicted_bytes) * (1.0 + self.margin)

    def see(
        self,
        *,
        predicted_s: float | None = None,
        observed_s: float | None = None,
        predicted_bytes: float | None = None,
        observed_bytes: float | None = None,
    ) -> None:
        """One step: what the fitted models said of it, uncorrected, and what was observed (None: not measured)."""
        if predicted_s is not None and observed_s is not None:
            self.seconds.see(observed_s, predicted_s)
        if predicted_bytes is not None and observed_bytes is not None and predicted_bytes > 0:
            self.steps += 1
            exceeded = observed_bytes > self.bound(predicted_bytes)
            self.above += exceeded
            move = self.rate * ((1.0 if exceeded else 0.0) - self.alpha)
            if exceeded:  # never again by the same step: memory that overflows stops jobs
                move = max(move, math.log(observed_bytes / self.bound(predicted_bytes)))
            self.margin = max(0.0, math.expm1(math.log1p(self.margin) + move))
            self.bytes.see(observed_bytes, predicted_bytes)
