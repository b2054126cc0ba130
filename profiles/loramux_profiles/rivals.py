"""This module holds other models' forms, which are set beside ours on the same measured points.

mLoRA publishes b0 + b1 B L + b2 B L^2 (arXiv 2312.02515, section 4): B rows as long as the longest,
L. `tokens` knows the real tokens only; `linear` knows everything that a sum over jobs can; the
prior is this project's own model before anything is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from loramux_profiles.adapters import AdapterCost, adapter_cost
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.memory import Implementation, base_dynamic_bytes, token_bytes
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint, StepPoint
from loramux_profiles.steptime import floor_s, method_floor_s, square_s, token_s
from loramux_profiles.time_features import INDEX, step_features
from loramux_profiles.work import ROUNDING
from loramux_traces.arrays import Floats


def mlora_form(point: StepPoint) -> tuple[float, ...]:
    """Return the features of mLoRA's form: (1, B L, B L^2)."""
    rows = sum(len(job.lengths) for job in point.jobs)
    longest = max(max(job.lengths) for job in point.jobs)
    return 1.0, float(rows * longest), float(rows * longest * longest)


def tokens_form(point: StepPoint) -> tuple[float, ...]:
    """Return the features (1, T) of a form that knows the real tokens only."""
    return 1.0, float(point.tokens)


#: Features of the time model that bytes are about proportional to as well.
_LINEAR: Final = (
    "narrow_elements",
    "drop_elements",
    "mixture_elements",
    "slot_elements",
    "dora_elements",
    "head_flops",
)
_LINEAR_MORE: Final = ("mola_elements", "loramoe_elements", "dynmole_elements", "attention_calls", "parameters")


def linear_form(shape: ModelShape) -> Callable[[StepPoint], tuple[float, ...]]:
    """Return the form that knows everything that a sum over jobs can.

    It has a constant, tokens, and sums over jobs of ranks, experts, slots, labels, rows and
    parameters: each with and without recompute.
    """

    def form(point: StepPoint) -> tuple[float, ...]:
        all_counts = step_features(shape, point)
        counts = [float(point.tokens), *(float(all_counts[INDEX[name]]) for name in (*_LINEAR, *_LINEAR_MORE))]
        zeros = [0.0] * len(counts)
        return 1.0, *(zeros if point.recompute else counts), *(counts if point.recompute else zeros)

    return form


FORMS: Final[dict[str, Callable[[ModelShape], Callable[[StepPoint], tuple[float, ...]]]]] = {
    "mlora": lambda shape: mlora_form,
    "tokens": lambda shape: tokens_form,
    "linear": linear_form,
}


def form_features(name: str, shape: ModelShape, points: Sequence[StepPoint]) -> Floats:
    """Return the features of a rival's form, [points, p]."""
    form = FORMS[name](shape)
    return np.asarray([form(point) for point in points])


def _adapter(shape: ModelShape, adapter: AdapterPoint) -> AdapterCost:
    experts = adapter.experts if isinstance(adapter.experts, int) else round(float(np.mean(adapter.experts)))
    return adapter_cost(
        shape,
        method=adapter.method,
        rank=adapter.rank,
        experts=experts,
        top_k=adapter.top_k,
        target_modules=adapter.targets,
    )


def prior_seconds(shape: ModelShape, device: DeviceProfile, dtype: str, point: StepPoint) -> float:
    """Return the seconds of a step by the unfitted time model (packed)."""
    floor, work, fixed = floor_s(shape, device), 0.0, 0.0
    methods: dict[str, float] = {}
    for job in point.jobs:
        cost = _adapter(shape, job.adapter)
        methods[job.adapter.method + job.adapter.targets] = method_floor_s(shape, cost, device)
        work += job.tokens * token_s(shape, cost, device, dtype=dtype, recompute=point.recompute)
        work += job.squares * square_s(shape, device, dtype=dtype, recompute=point.recompute)
        fixed += device.c2 * cost.params
    return max(floor + sum(methods.values()), work) + fixed


def prior_bytes(shape: ModelShape, device: DeviceProfile, dtype: str, point: StepPoint) -> float:
    """Return the dynamic bytes of a step by the unfitted memory model (packed)."""
    runtime = Implementation()
    total = base_dynamic_bytes(shape, device, runtime)
    for job in point.jobs:
        cost = _adapter(shape, job.adapter)
        each = token_bytes(
            shape, cost, dtype=dtype, recompute=point.recompute, scale=device.activation_scale, implementation=runtime
        )
        total += job.tokens * each + device.row_bytes * len(job.lengths)
    surplus = -point.tokens % ROUNDING
    return total + surplus * 2.0 * shape.hidden * shape.layers
