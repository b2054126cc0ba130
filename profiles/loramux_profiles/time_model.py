"""The fitted step-time model gives seconds of a step as a constant and a sum over its jobs.

Coefficients are seconds per FLOP, byte, element or call (`time_features.FEATURES`), fitted to
measured steps; a step's time is linear in each job's tokens, squares, labels and rows, so that a
scheduler adds and removes jobs in O(1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_profiles.time_features import (
    FEATURES,
    INDEX,
    JOB_TERMS,
    SHARED_ROWS,
    job_counts,
    structure,
)
from loramux_traces.arrays import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTime:
    """Says what a job adds to a step, in seconds."""

    job_s: float
    """For being in the step: calls, reading back, its optimizer."""
    shared_s: float
    """What the first job of its structure adds (`structure`).

    It is kernels that serve all jobs of the structure at once. It is 0 in exact mode, where every
    job has its own.
    """
    token_s: float
    square_s: float
    """Seconds per squared row length."""
    label_s: float
    """Seconds per position that is learned."""
    row_s: float

    def seconds(self, job: JobPoint) -> float:
        """Return the job's own part of a step, without `shared_s`."""
        rows = len(job.lengths)
        return (
            self.job_s
            + self.token_s * job.tokens
            + self.square_s * job.squares
            + self.label_s * job.labels
            + self.row_s * rows
        )


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Holds fitted coefficients for one shape on one device.

    It is hashable: its answers by adapter are cached.
    """

    shape: ModelShape
    coefficients: tuple[float, ...]
    """Coefficients in the order of FEATURES."""
    exact: bool = True
    """Whether jobs have all kernels of their own, as the runtime's exact mode does."""

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(FEATURES):
            raise ValueError(f"{len(self.coefficients)} coefficients for {len(FEATURES)} features")

    @classmethod
    def of(cls, shape: ModelShape, coefficients: Mapping[str, float], *, exact: bool = True) -> TimeModel:
        """Make a model from named coefficients; those that are not named are 0.

        Raises ValueError for a name that is no feature.
        """
        unknown = sorted(set(coefficients) - set(FEATURES))
        if unknown:
            raise ValueError(f"no feature of the time model is called {unknown[0]!r}")
        return cls(shape, tuple(float(coefficients.get(name, 0.0)) for name in FEATURES), exact)

    def named(self) -> dict[str, float]:
        """Return the coefficients by feature, with zeros left out."""
        return {name: value for name, value in zip(FEATURES, self.coefficients, strict=True) if value}

    def step_s(self, *, recompute: bool = False) -> float:
        """Return the seconds of a step that no job adds."""
        total = self._of("step") + (self._of("step_again") if recompute else 0.0)
        if not self.exact:  # one product for all jobs
            total += self._of("frozen_calls") * self.shape.layers * len(self.shape.linears) * (3 if recompute else 2)
        return total

    def job(self, adapter: AdapterPoint, *, recompute: bool = False) -> JobTime:
        """Return what a job with this adapter adds."""
        return _job_time(self, adapter, recompute)

    def seconds(self, point: StepPoint) -> float:
        """Return the seconds of a fused step.

        They are `step_s`, every job's own, and `shared_s` once for each structure.
        """
        total = self.step_s(recompute=point.recompute)
        seen: set[tuple[object, ...]] = set()
        for job in point.jobs:
            own = self.job(job.adapter, recompute=point.recompute)
            total += own.seconds(job)
            key = structure(job.adapter)
            if key not in seen:
                seen.add(key)
                total += own.shared_s
        return total

    def _of(self, name: str) -> float:
        return self.coefficients[INDEX[name]]


@lru_cache(maxsize=16384)
def _job_time(model: TimeModel, adapter: AdapterPoint, recompute: bool) -> JobTime:
    counts = job_counts(model.shape, adapter, recompute)
    each: Floats = np.asarray(model.coefficients)[:, None] * counts
    shared = 0.0
    if not model.exact:
        rows = [i for i in SHARED_ROWS if i != INDEX["frozen_calls"]]
        shared = float(each[rows].sum())
        each = each.copy()
        each[list(SHARED_ROWS)] = 0.0
    terms = dict(zip(JOB_TERMS, each.sum(axis=0).tolist(), strict=True))
    return JobTime(
        job_s=terms["job"],
        shared_s=shared,
        token_s=terms["token"],
        square_s=terms["square"],
        label_s=terms["label"],
        row_s=terms["row"],
    )
