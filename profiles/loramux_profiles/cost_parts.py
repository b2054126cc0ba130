"""The constants of an adapter on a base and a device type: no size or length changes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from loramux_profiles import memory, steptime
from loramux_profiles.adapters import AdapterCost, adapter_cost
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.fitted import FittedModel, adapter_point
from loramux_profiles.memory import Implementation
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.shape_catalog import load_shape
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan.structure import stored_params
from loramux_profiles.step_point import AdapterPoint
from loramux_profiles.work import BaseCost
from loramux_traces.job import JobSpec


class Parts(NamedTuple):
    """Holds the constants of a class that neither its rows nor their lengths change."""

    base: BaseCost
    own_bytes: int
    state_bytes: int
    token_bytes: float
    square_bytes: float
    row_bytes: float
    token_s: float
    square_s: float
    optimizer_s: float
    method_floor_s: float
    load_s: float
    pause_s: float
    row_s: float = 0.0
    label_s: float = 0.0
    """Seconds per position that is learned.

    Every token but a row's first counts as one, as nothing says otherwise.
    """
    job_s: float = 0.0
    """Seconds per fused step, however few rows it has."""
    adapter: AdapterPoint | None = None


class ConstantParts:
    """Works out the constants of each adapter and base once, from a fitted record or the prior."""

    def __init__(
        self,
        device: DeviceProfile,
        implementation: Implementation,
        *,
        fitted: FittedModel | None,
        ideal: bool,
        planned: bool,
        folder: str,
    ) -> None:
        self._device, self._implementation, self._fitted = device, implementation, fitted
        self._ideal, self._planned, self._folder = ideal, planned, folder
        self._bases: dict[tuple[str, str], BaseCost] = {}
        self._known: dict[tuple[Any, ...], Parts] = {}

    def _base(self, shape: ModelShape, dtype: str, fitted: FittedModel | None = None) -> BaseCost:
        base = self._bases.get((shape.name, dtype))
        if base is None and fitted is not None:
            base = self._bases[shape.name, dtype] = BaseCost(
                key=shape.name if dtype == "bf16" else f"{shape.name}:{dtype}",
                weights_bytes=shape.weight_bytes(dtype),
                context_bytes=int(self._device.context_bytes),
                dynamic_bytes=0.0,
                floor_s=0.0,
                read_s=fitted.time.step_s(),
                load_s=fitted.base_load_s,
                planned=PlannedMemory(
                    shape, dtype=dtype, exact=fitted.exact, scale=fitted.scale, offset_bytes=fitted.offset_bytes
                ),
            )
        if base is None:
            device, none = self._device, self._ideal
            weights = memory.weight_bytes(shape, dtype, device)
            base = self._bases[shape.name, dtype] = BaseCost(
                key=shape.name if dtype == "bf16" else f"{shape.name}:{dtype}",
                weights_bytes=0 if none else weights,
                context_bytes=0 if none else int(device.context_bytes),
                dynamic_bytes=0.0
                if none or self._planned
                else memory.base_dynamic_bytes(shape, device, self._implementation),
                floor_s=steptime.floor_s(shape, device),
                read_s=device.weight_passes * weights / device.memory_bandwidth,
                load_s=0.0 if none else weights / device.disk_bandwidth,
                token_s=steptime.frozen_token_s(shape, device, dtype),
                planned=PlannedMemory(shape, dtype=dtype, exact=device.name == "cpu") if self._planned else None,
            )
        return base

    def of(self, spec: JobSpec, progress: float | None) -> Parts:
        """Return what all sizes and lengths of an adapter on a base have in common.

        Only one in ten classes has new parts.
        """
        dtype, recompute, dropout = spec.dtype, spec.recompute, spec.dropout > 0
        adapted = (spec.base_model, spec.method, spec.rank, spec.experts, spec.top_k, spec.target_modules)
        key = (*adapted, dtype, recompute, dropout, progress)
        known = self._known.get(key)
        if known is not None:
            return known
        shape = load_shape(spec.base_model, self._folder)
        device, implementation, ideal = self._device, self._implementation, self._ideal
        if self._fitted is not None and self._fitted.covers(shape, dtype):
            parts = self._known[key] = self._measured(spec, shape, self._fitted)
            return parts
        adapter: AdapterCost = adapter_cost(
            shape,
            method=spec.method,
            rank=spec.rank,
            experts=spec.experts,
            top_k=spec.top_k,
            target_modules=spec.target_modules,
            expert_path=implementation.expert_path,
            progress=progress,
        )
        token_bytes = memory.token_bytes(
            shape,
            adapter,
            dtype=dtype,
            recompute=recompute,
            dropout=dropout,
            scale=device.activation_scale,
            implementation=implementation,
        )
        state = memory.STATE_BYTES * adapter.params
        parts = Parts(
            base=self._base(shape, dtype),
            own_bytes=0 if ideal else memory.own_bytes(adapter.params, dtype),
            state_bytes=0 if ideal else state,
            token_bytes=0.0 if ideal else token_bytes,
            square_bytes=0.0 if ideal else memory.square_bytes(shape, implementation),
            row_bytes=0.0 if ideal else float(device.row_bytes),
            token_s=steptime.token_s(shape, adapter, device, dtype=dtype, recompute=recompute),
            square_s=steptime.square_s(shape, device, dtype=dtype, recompute=recompute),
            optimizer_s=device.c2 * adapter.params,
            method_floor_s=steptime.method_floor_s(shape, adapter, device),
            load_s=0.0 if ideal else device.join_s + 4 * adapter.params / device.host_bandwidth,
            pause_s=0.0 if ideal else state / device.host_bandwidth,
        )
        if self._planned:
            point = adapter_point(spec)
            # 16-bit copies are part of the plan
            state = memory.STATE_BYTES * stored_params(shape, point)
            parts = parts._replace(
                own_bytes=state, state_bytes=state, token_bytes=0.0, square_bytes=0.0, row_bytes=0.0, adapter=point
            )
        self._known[key] = parts
        return parts

    def _measured(self, spec: JobSpec, shape: ModelShape, fitted: FittedModel) -> Parts:
        """Return the same constants from a fitted record."""
        adapter = adapter_point(spec)
        params = stored_params(shape, adapter)
        times = fitted.time.job(adapter, recompute=spec.recompute)
        each = fitted.time.named().get("parameters", 0.0)
        state = memory.STATE_BYTES * params
        return Parts(
            base=self._base(shape, spec.dtype, fitted),
            own_bytes=state,
            state_bytes=state,
            token_bytes=0.0,
            square_bytes=0.0,
            row_bytes=0.0,
            token_s=times.token_s,
            square_s=times.square_s,
            optimizer_s=each * params,
            method_floor_s=0.0,
            load_s=fitted.join_s + fitted.join_byte_s * state,
            pause_s=fitted.pause_s + fitted.pause_byte_s * state,
            row_s=times.row_s,
            label_s=times.label_s,
            job_s=times.job_s - each * params + times.shared_s,
            adapter=adapter,
        )
