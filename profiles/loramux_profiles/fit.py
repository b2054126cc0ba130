"""This module fits both models to a record.

Each figure is cross-validated by point, with rivals on the same points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from loramux_profiles.bounds import ALPHA, conformal_margin, trusted_tokens
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.fit_section import FitSection, MemoryFit, TimeFit
from loramux_profiles.records import ProfileRecord
from loramux_profiles.regression import Errors, cross_validated, errors, relative_nnls
from loramux_profiles.rivals import FORMS, form_features, prior_bytes, prior_seconds
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import StepPoint
from loramux_profiles.time_features import FEATURES, INDEX, step_features
from loramux_profiles.time_model import TimeModel
from loramux_traces.arrays import Floats
from loramux_traces.errors import UsageError

Walk = Callable[[StepPoint], float]
"""Gives the dynamic bytes of a step by formula."""
FOLDS: Final = 10
FEWEST: Final = 20
"""Points below which nothing is fitted, because so few say nothing of an error.

They may be fewer than the features of the time model: most of a non-negative fit's coefficients are
0 then, its errors are of held-out points all the same, and `fit_table` says so.
"""
STATE_BYTES: Final = 16
"""Bytes per trainable parameter: fp32 weight, gradient and two Adam moments."""


def fit_record(record: ProfileRecord, walk: Walk | None, device: DeviceProfile | None, *, date: str) -> FitSection:
    """Return the `fit` section of a record.

    `walk` is that of the memory model (None: times only). `device` gives the prior that is compared
    (None: no prior). Raises UsageError where there are too few points.
    """
    timed, peaks = record.timed, record.peaks
    if len(timed) < FEWEST and len(peaks) < FEWEST:
        raise UsageError(f"the profile has {len(timed)} times and {len(peaks)} peaks; a fit needs {FEWEST}")
    return FitSection(
        date=date,
        folds=FOLDS,
        time=fit_time(record, device) if len(timed) >= FEWEST else None,
        memory=fit_memory(record, walk, device) if walk is not None and len(peaks) >= FEWEST else None,
    )


def time_model(record: ProfileRecord) -> TimeModel:
    """Return the fitted time model of a record.

    Raises UsageError where it has none.
    """
    if record.fit is None or record.fit.time is None:
        raise UsageError("the profile has no fitted times: run loramux fit on it")
    named = {name: each.value for name, each in record.fit.time.coefficients.items()}
    return TimeModel.of(record.model.shape, named, exact=record.exact)


def step_matrix(shape: ModelShape, points: Sequence[StepPoint], *, exact: bool) -> Floats:
    """Return the features of the time model, [points, features]."""
    return np.stack([step_features(shape, point, exact=exact) for point in points])


def fit_time(record: ProfileRecord, device: DeviceProfile | None) -> TimeFit:
    """Fit step times to the medians of the repeats, at one speed of the machine."""
    shape = record.model.shape
    timed = record.timed
    points = [p.point for p in timed]
    actual = np.asarray([record.even_s(p.time) for p in timed if p.time is not None])
    features = step_matrix(shape, points, exact=record.exact)
    found = relative_nnls(features, actual)
    held_out = cross_validated(features, actual, FOLDS)
    repeats = [
        float(np.mean(np.abs(np.asarray(p.time.samples) / p.time.median - 1))) for p in timed if p.time is not None
    ]
    rivals = _rivals(shape, points, actual)
    if device is not None:
        prior = np.asarray([prior_seconds(shape, device, record.model.dtype, p) for p in points])
        rivals["prior"] = errors(actual, prior)
    return TimeFit.model_validate(
        {
            "coefficients": {
                name: {"value": found[INDEX[name]], "unit": unit}
                for name, (unit, _) in FEATURES.items()
                if found[INDEX[name]] > 0
            },
            "cross_validated": errors(actual, held_out).to_dict(),
            "repeats": float(np.mean(repeats)),
            "rivals": {name: each.to_dict() for name, each in rivals.items()},
            "residuals": _residuals(actual, held_out),
        }
    )


def fit_memory(record: ProfileRecord, walk: Walk, device: DeviceProfile | None, alpha: float = ALPHA) -> MemoryFit:
    """Fit dynamic bytes to the walk: a scale, an offset and the conformal bound.

    The bound comes from predictions of held-out folds. With fewer than 99 points, or with steps
    that ran out of memory unforeseen, it is not at `alpha` but at the level that the points
    support, which the section states.
    """
    shape = record.model.shape
    peaks = record.peaks
    points = [p.point for p in peaks]
    actual = np.asarray([float(p.memory.dynamic or 0) for p in peaks])
    features = np.asarray([(float(walk(point)), 1.0) for point in points])
    scale, offset = (float(value) for value in relative_nnls(features, actual))
    held_out = cross_validated(features, actual, FOLDS)
    unforeseen = _unforeseen(record, lambda p: scale * walk(p) + offset)
    scores = [*actual, *(np.inf for _ in unforeseen)]
    predicted = [*held_out, *(scale * walk(point) + offset for point in unforeseen)]
    # The best level that so many points, and so many above any prediction, can support
    alpha = max(alpha, (1 + len(unforeseen)) / (len(scores) + 1))
    margin = conformal_margin(scores, predicted, alpha)
    rivals = _rivals(shape, points, actual)
    if device is not None:
        prior = np.asarray([prior_bytes(shape, device, record.model.dtype, p) for p in points])
        rivals["prior"] = errors(actual, prior)
    return MemoryFit.model_validate(
        {
            "scale": scale,
            "offset_bytes": offset,
            "margin": margin,
            "alpha": alpha,
            "cross_validated": errors(actual, held_out).to_dict(),
            "violations": int(np.sum(actual > (1 + margin) * held_out * (1 + 1e-12))),
            "censored": sum(p.memory.censored for p in record.points),
            "trusted_tokens": trusted_tokens([float(point.tokens) for point in points]),
            "rivals": {name: each.to_dict() for name, each in rivals.items()},
            "residuals": _residuals(actual, held_out),
        }
    )


def static_bytes(shape: ModelShape, dtype: str, point: StepPoint) -> float:
    """Return the bytes of weights, adapters and optimizer states of a step's jobs, by formula."""
    parameters = float(step_features(shape, point)[INDEX["parameters"]])
    return shape.weight_bytes(dtype) + STATE_BYTES * parameters


def _unforeseen(record: ProfileRecord, predict: Walk) -> list[StepPoint]:
    """Return the steps that ran out of memory although the model would have let them in.

    They count as above any prediction. A step that the model would have refused says nothing new.
    """
    shape, dtype = record.model.shape, record.model.dtype
    out = [p for p in record.points if p.memory.censored]
    return [p.point for p in out if predict(p.point) + static_bytes(shape, dtype, p.point) <= (p.memory.known or 0)]


def _rivals(shape: ModelShape, points: Sequence[StepPoint], actual: Floats) -> dict[str, Errors]:
    return {name: errors(actual, cross_validated(form_features(name, shape, points), actual, FOLDS)) for name in FORMS}


def _residuals(actual: Floats, predicted: Floats) -> list[float]:
    # A fold's fit may predict 0 for a step with features that no step of the other folds has
    return [round(float(value), 5) for value in np.log(actual / np.maximum(predicted, 1e-12))]


def summary(record: ProfileRecord) -> dict[str, Any]:
    """Return what a record holds, in plain types, for `--check` and `--json`."""
    fit = record.fit
    return {
        "device": record.device.name,
        "kind": record.device.kind,
        "model": record.model.name,
        "dtype": record.model.dtype,
        "points": len(record.points),
        "timed": len(record.timed),
        "censored": sum(p.memory.censored for p in record.points),
        "date": record.date,
        "commit": record.commit,
        "fit": None if fit is None else fit.model_dump(mode="json"),
    }
