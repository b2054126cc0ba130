"""This module gives the peak of a fused step by formula.

It walks over the step's allocations instead of running it, and needs no torch. The peak is the
highest of a few candidates: the loss with its chunk of logits, the loss's and the final norm's
backward pass, and the backward pass of each layer (whatever a later layer kept has been freed
there). Optimizers come when the activations are gone, and need nothing. The cost is O(jobs x
linears).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan.structure import LayerPlan, layer_plans, stored_params
from loramux_profiles.step_plan.walk import (
    ALLOCATION,
    DEVICE_MASK_BLOCK,
    INDEX,
    MASK_BLOCK,
    WIDE,
    Group,
    Layer,
    Setting,
    layer,
    up,
)
from loramux_profiles.step_point import JobPoint, StepPoint
from loramux_profiles.widths import ROUNDING

LOSS_CHUNK: Final = 512
"""Rows of logits at a time (`kernels.loss`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Holds the dynamic bytes of a step at each moment that may be its peak."""

    moments: dict[str, int]

    @property
    def peak(self) -> int:
        """Return the highest bytes of all moments."""
        return max(self.moments.values())


def step_plan(shape: ModelShape, point: StepPoint, *, dtype: str = "fp32", exact: bool = True) -> StepPlan:
    """Return the plan of a step.

    `dtype` is fp32 or bf16. With `exact` every job is a group of its own (the runtime's CPU mode).
    """
    element = 4 if dtype == "fp32" else 2
    tokens = point.tokens
    width = -(-tokens // ROUNDING) * ROUNDING
    block = MASK_BLOCK if exact else DEVICE_MASK_BLOCK
    setting = Setting(shape=shape, width=width, element=element, mask_block=block, exact=exact)
    plans = [layer_plans(shape, job.adapter) for job in point.jobs]
    kinds: dict[tuple[int, ...], Layer] = {}
    layers: list[Layer] = []
    for i in range(shape.layers):
        own = [p[i] for p in plans]
        kind = tuple(map(id, own))  # layers that are alike share their plans' objects
        if i == 0:
            layers.append(_layer(setting, point.jobs, own, True))
            continue
        if kind not in kinds:
            kinds[kind] = _layer(setting, point.jobs, own, False)
        layers.append(kinds[kind])
    stored = [stored_params(shape, job.adapter) for job in point.jobs]
    hidden, row = up(width * shape.hidden * element), up(width * WIDE)
    labels = sum(job.labels for job in point.jobs)
    always = 2 * up(width * INDEX) + row + 2 * up(labels * INDEX) + 2 * up(width * shape.head_dim * element)
    always += sum(up(job.tokens * INDEX) for job in point.jobs if job.adapter.method == "mixlora")
    # Offsets, scales and limits of every job's group, its auxiliary loss, and what exists only once
    always += ALLOCATION * (5 + sum(3 if job.adapter.method == "lora" else 5 for job in point.jobs))
    always += _copies(point.jobs, plans, stored, element, exact)
    kept = sum(la.recomputed if point.recompute else la.saved for la in layers)
    final = hidden + row
    grad = up(labels * shape.hidden * element)
    chunk = max(_chunk(shape, job, element) for job in point.jobs)
    moments = {
        "loss": always + kept + final + hidden + grad + chunk,
        "loss backward": always + kept + final + hidden + 2 * grad,
        "norm backward": always + kept + final + hidden + 3 * up(width * shape.hidden * WIDE),
    }
    below = 0
    for i, la in enumerate(layers):
        saved = la.recomputed if point.recompute else la.saved
        level = always + below + la.saved + la.rise
        if point.recompute and i == 0:
            level += hidden  # elsewhere the first norm has kept it
        key = f"layer {i}"
        moments[key] = level
        below += saved
    return StepPlan(moments=moments)


def _copies(
    jobs: Sequence[JobPoint], plans: Sequence[Sequence[LayerPlan]], stored: Sequence[int], element: int, exact: bool
) -> int:
    """Return the bytes of the parameters in the type that is computed in.

    They are of all jobs; in fp32 only of those that share kernels with others.
    """
    if element != WIDE:
        return sum(up(params * element) for params in stored)
    if exact:
        return 0
    places = [_place((job, plan[0])) for job, plan in zip(jobs, plans, strict=True)]
    return sum(up(params * WIDE) for params, place in zip(stored, places, strict=True) if places.count(place) > 1)


def _layer(setting: Setting, jobs: Sequence[JobPoint], plans: Sequence[LayerPlan], first: bool) -> Layer:
    pairs = sorted(zip(jobs, plans, strict=True), key=_place)
    groups: list[list[tuple[JobPoint, LayerPlan]]] = []
    for pair in pairs:
        if not setting.exact and groups and _place(groups[-1][0]) == _place(pair):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    found = [
        Group(jobs=tuple(job for job, _ in group), tokens=sum(job.tokens for job, _ in group), plan=group[0][1])
        for group in groups
    ]
    return layer(setting, found, first=first)


def _place(pair: tuple[JobPoint, LayerPlan]) -> tuple[bool, str]:
    """Return the sort key that puts a job in its place in a packed step.

    Jobs with expert blocks stand last, those of one structure together (`packing.build_layout`).
    The order of structures among the others changes no peak.
    """
    job, plan = pair
    if plan.block is None:
        return False, repr((job.adapter.method, plan.updates, job.adapter.top_k, job.adapter.dora))
    attention = (0,) if plan.updates else None
    return True, repr((plan.block.width, plan.block.experts, plan.block.top_k, job.adapter.dora, attention))


def _chunk(shape: ModelShape, job: JobPoint, element: int) -> int:
    rows = min(LOSS_CHUNK, job.labels)
    logits = up(rows * shape.vocab * WIDE)
    copy = up(rows * shape.vocab * element) if element != WIDE else 0
    return up(rows * shape.hidden * element) + logits + copy


def plan_bytes(shape: ModelShape, point: StepPoint, *, dtype: str = "fp32", exact: bool = True) -> float:
    """Return the dynamic bytes of the step's peak.

    They are everything but weights, adapters, gradients and optimizer state.
    """
    return float(step_plan(shape, point, dtype=dtype, exact=exact).peak)
