"""This module holds the executor's own steps against the fitted profile that admission goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loramux_profiles.fitted import FittedModel
from loramux_profiles.online import OnlineRefit
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.packing import MicroBatch

RESCALED: float = 1e-3
"""Share by which the bound must have changed to be moved: every move is a row of a recorded run."""


class Observer:
    """Keeps the fit right while a run goes on, and says in the end how right it was.

    The refit is that of `loramux_profiles.online`.
    """

    def __init__(self, fitted: FittedModel) -> None:
        memory = PlannedMemory(
            fitted.shape, dtype=fitted.dtype, exact=fitted.exact, scale=fitted.scale, offset_bytes=fitted.offset_bytes
        )
        self._refit = OnlineRefit(fitted_s=fitted.time.seconds, fitted_bytes=memory.point_bytes, margin=fitted.margin)
        self._scale = 1.0 + fitted.margin
        self._errors: list[tuple[float, float]] = []
        """|predicted / observed - 1| of each step's time.

        The first is by the fit, the second by the fit as refitted before the step.
        """
        self._bytes: list[float] = []

    def see(
        self,
        jobs: Sequence[tuple[AdapterPoint | None, MicroBatch]],
        *,
        recompute: bool,
        seconds: float,
        dynamic_bytes: float | None,
    ) -> float | None:
        """Take in one step as it was; return the new scale of the bound, or None.

        The scale is the ratio of the bound on dynamic bytes to their expected value from now on. It
        is None where that has not moved (always where bytes are not measured). A step with an
        adapter that the profile knows nothing of (None) tells nothing.
        """
        points = tuple(
            JobPoint(adapter=adapter, lengths=tuple(map(len, batch.tokens)), labels=batch.n_labels)
            for adapter, batch in jobs
            if adapter is not None
        )
        if len(points) < len(jobs):
            return None
        point = StepPoint(jobs=points, recompute=recompute)
        refit = self._refit
        plain, refitted = refit.fitted_s(point), refit.seconds(point)
        if seconds > 0:
            self._errors.append((abs(plain / seconds - 1), abs(refitted / seconds - 1)))
        if dynamic_bytes is not None:
            self._bytes.append(refit.dynamic_bytes(point) / dynamic_bytes - 1)
        refit.see(point, seconds=seconds, dynamic_bytes=dynamic_bytes)
        if dynamic_bytes is None:
            return None
        scale = refit.bytes_ratio.factor * (1.0 + refit.margin_now)
        if abs(scale / self._scale - 1) < RESCALED:
            return None
        self._scale = scale
        return scale

    def report(self) -> dict[str, Any]:
        """Return the errors of the predictions over the run, as shares of what was observed."""
        if not self._errors:
            return {"steps": 0}
        plain, refitted = np.mean(np.asarray(self._errors), axis=0).tolist()
        found: dict[str, Any] = {
            "steps": len(self._errors),
            "time_mape": plain,
            "time_mape_refitted": refitted,
            "time_factor": self._refit.time_ratio.factor,
        }
        if self._bytes:
            found |= {
                "memory_mape": float(np.mean(np.abs(self._bytes))),
                "memory_factor": self._refit.bytes_ratio.factor,
                "above_bound": self._refit.above,
            }
        return found
