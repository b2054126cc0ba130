"""Keeping the fitted models right while the executor runs: what it observes moves a factor and a margin.

A machine is shared, clocks change, a library is updated: the shape of a fitted model stays, its
scale drifts. The factor is a least-squares estimate of log(observed / predicted) that forgets; the
margin follows adaptive conformal inference (Gibbs and Candes, NeurIPS 2021): every step above the
bound raises it, every step below lowers it a little, so that the share above tends to alpha
whatever the drift.
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


@dataclass(slots=True, kw_only=True)
class OnlineRefit:
    """Corrected predictions of steps, and the bound on their bytes, from the executor's own steps."""

    fitted_s: Callable[[StepPoint], float]
    """Seconds of a step by the fitted time model."""
    fitted_bytes: Callable[[StepPoint], float]
    """Its dynamic bytes by the fitted memory model."""
    margin: float
    """Of the fit: the bound is (1 + margin) times the prediction."""
    alpha: float = ALPHA
    rate: float = 0.01
    """How far (as a log) a step above the bound raises the margin at least, times 1 - alpha; one
    below lowers it by alpha times this.
    """
    time_ratio: LogRatio = field(default_factory=LogRatio)
    bytes_ratio: LogRatio = field(default_factory=LogRatio)
    steps: int = 0
    above: int = 0
    """Steps above the bound as it was when they ran."""
    _lasting: float = field(init=False)
    """Log of one plus the margin that the share above the bound asks for; never below the fit's
    own.
    """
    _shift: float = field(init=False, default=0.0)
    """What steps above the bound have added until the factor follows, or the step is forgotten as a
    freak.
    """

    def __post_init__(self) -> None:
        if self.margin < 0 or not 0 < self.alpha < 1:
            raise ValueError(f"margin {self.margin!r} and alpha {self.alpha!r} make no bound")
        self._lasting = math.log1p(self.margin)

    def seconds(self, point: StepPoint) -> float:
        """Of a step."""
        return self.fitted_s(point) * self.time_ratio.factor

    def dynamic_bytes(self, point: StepPoint) -> float:
        """Expected, of a step."""
        return self.fitted_bytes(point) * self.bytes_ratio.factor

    def bound_bytes(self, point: StepPoint) -> float:
        """What its dynamic bytes stay below but for a share of alpha."""
        return self.dynamic_bytes(point) * (1.0 + self.margin_now)

    @property
    def margin_now(self) -> float:
        """The margin as steps have moved it."""
        return math.expm1(self._lasting + self._shift)

    def see(self, point: StepPoint, *, seconds: float | None = None, dynamic_bytes: float | None = None) -> None:
        """One step as it was observed (None: not measured)."""
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
        if exceeded:  # never again by the same step: memory that overflows stops jobs
            self._shift += max(0.0, math.log(dynamic_bytes / self.bound_bytes(point)))
