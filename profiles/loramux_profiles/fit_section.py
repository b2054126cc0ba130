"""The fit section is the fitted part of a profile record.

It holds coefficients with units, how wrong they are, and rivals on the same points.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from loramux_profiles.file_part import FilePart, Listed
from loramux_profiles.time_features import FEATURES

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Coefficient(FilePart):
    """Holds one fitted number with its unit."""

    value: Positive
    unit: Annotated[str, StringConstraints(max_length=40)]


class ErrorFigures(FilePart):
    """Holds errors as shares of what was measured.

    There are `n` points, each predicted by a fit without it.
    """

    n: Annotated[int, Field(ge=1)]
    mape: Positive
    worst_under: Positive
    worst_over: Positive
    median: Positive


class TimeFit(FilePart):
    """Holds the fitted model of step times."""

    coefficients: dict[str, Coefficient]
    """Coefficients by feature (`time_features.FEATURES`); absent ones are 0."""
    cross_validated: ErrorFigures
    repeats: Positive
    """Mean distance of a repeat from its median, which no model can predict."""
    rivals: dict[str, ErrorFigures]
    """Errors on the same points under other models' forms."""
    residuals: Listed[Finite]
    """log(measured / predicted) of each timed point, cross-validated."""

    @field_validator("coefficients")
    @classmethod
    def _known(cls, coefficients: dict[str, Coefficient]) -> dict[str, Coefficient]:
        for name, coefficient in coefficients.items():
            if name not in FEATURES:
                raise ValueError(f"no feature of the time model is called {name[:40]!r}")
            if coefficient.unit != FEATURES[name][0]:
                raise ValueError(f"{name} is in {FEATURES[name][0]}, not in {coefficient.unit!r}")
        return coefficients


class MemoryFit(FilePart):
    """Holds the fit of a step's dynamic bytes: scale * walk + offset, and an upper bound.

    The upper bound is (1 + margin) times that.
    """

    scale: Positive
    offset_bytes: Positive
    margin: Positive
    """Conformal margin at `alpha`: a further step exceeds the bound with at most that chance."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    cross_validated: ErrorFigures
    violations: Annotated[int, Field(ge=0)]
    """Number of points above the bound."""
    censored: Annotated[int, Field(ge=0)]
    """Number of points that ran out of memory."""
    trusted_tokens: Positive
    """Most tokens that the model may be asked about without a trial step."""
    rivals: dict[str, ErrorFigures]
    residuals: Listed[Finite]


class FitSection(FilePart):
    """Holds what `loramux fit` found."""

    date: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\d$")]
    folds: Annotated[int, Field(ge=2, le=1000)]
    time: TimeFit | None = None
    memory: MemoryFit | None = None
