"""This module brings a fitted profile record into the form that the cost model takes.

It gives measured times and planned memory of one model on one device.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint
from loramux_profiles.time_model import TimeModel
from loramux_traces.errors import UsageError

if TYPE_CHECKING:
    from loramux_profiles.records import ProfileRecord
    from loramux_traces.job import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedModel:
    """Holds what a record's fit says, for jobs on its model."""

    name: str
    """Name of the model that was measured."""
    shape: ModelShape
    dtype: str
    kind: str
    """Kind of the device: cpu or cuda."""
    exact: bool
    time: TimeModel
    scale: float
    offset_bytes: float
    margin: float
    """Margin of the conformal bound on dynamic bytes."""
    trusted_tokens: float
    join_s: float
    """Fixed seconds of a new job; `join_byte_s` adds seconds per byte of its state.

    A pause has the same two numbers.
    """
    join_byte_s: float
    pause_s: float
    pause_byte_s: float
    base_load_s: float
    digest: str
    """SHA-256 of the record's file."""
    allow_other: bool = field(default=False, compare=False)
    """Whether jobs on other models, or in another precision, are allowed.

    They then use the device's own constants instead of being refused.
    """

    def covers(self, shape: ModelShape, dtype: str) -> bool:
        """Return whether the record speaks for jobs on this model, whatever the model's name.

        Raises UsageError where it does not and other models are not allowed.
        """
        if dtype == self.dtype and replace(shape, name="", source="") == replace(self.shape, name="", source=""):
            return True
        if self.allow_other:
            return False
        raise UsageError(
            f"the profile is of {self.name} in {self.dtype}, not of {shape.name} in {dtype}; "
            "--allow-other costs such jobs by the device's own constants"
        )


def fitted_model(record: ProfileRecord, digest: str, path: Path | str, *, allow_other: bool = False) -> FittedModel:
    """Return the fit in a record.

    Raises UsageError where there is none.
    """
    fit = record.fit
    if fit is None or fit.time is None or fit.memory is None:
        raise UsageError(f"{path}: the record has no fit yet: loramux fit {path}")
    shape = record.model.shape
    coefficients = {name: c.value for name, c in fit.time.coefficients.items()}
    moved = record.transfers
    return FittedModel(
        name=record.model.name,
        shape=shape,
        dtype=record.model.dtype,
        kind=record.device.kind,
        exact=record.exact,
        time=TimeModel.of(shape, coefficients, exact=record.exact),
        scale=fit.memory.scale,
        offset_bytes=fit.memory.offset_bytes,
        margin=fit.memory.margin,
        trusted_tokens=fit.memory.trusted_tokens,
        join_s=moved.join.fixed_s if moved else 0.0,
        join_byte_s=moved.join.byte_s if moved else 0.0,
        pause_s=moved.pause.fixed_s if moved else 0.0,
        pause_byte_s=moved.pause.byte_s if moved else 0.0,
        base_load_s=moved.base_load_s if moved else 0.0,
        digest=digest,
        allow_other=allow_other,
    )


def adapter_point(spec: JobSpec) -> AdapterPoint:
    """Return the adapter of a trace's job in the terms of the plan."""
    plain = spec.method == "lora" or (spec.method == "mixlora" and spec.target_modules in ("attention", "qv"))
    return AdapterPoint(
        method="lora" if plain else spec.method,
        rank=spec.rank,
        experts=1 if plain else spec.experts,
        # LoRAMoE always has all experts: a trace's top_k means nothing there, and profiles are
        # measured with 1
        top_k=1 if plain or spec.method == "loramoe" else min(spec.top_k, spec.experts),
        targets=spec.target_modules,
        dropout=spec.dropout > 0,
    )
