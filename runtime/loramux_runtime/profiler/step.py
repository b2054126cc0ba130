"""This module makes a fused step of the real runtime from a `StepPoint`.

It also measures the step's peak of live storages.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.labels import IGNORED
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part
from loramux_runtime.profiler.tracker import StorageTracker

RATE = 0.05
"""Dropout of points that have any: memory and time do not depend on the rate."""


def adapter_config(point: AdapterPoint) -> Any:
    """Return the configuration of the point's method."""
    rate = RATE if point.dropout else 0.0
    common: dict[str, Any] = {"rank": point.rank, "alpha": 2.0 * point.rank, "dropout": rate}
    if point.method == "lora":
        return LoraConfig(target_modules=point.targets, use_dora=point.dora, **common)
    if point.method == "mixlora":
        attention = LoraConfig(target_modules="attention", use_dora=point.dora, **common)
        return METHODS["mixlora"].config_type(
            num_experts=point.experts,
            top_k=point.top_k,
            attention=attention if point.targets == "all-linear" else None,
            use_dora=point.dora,
            **common,
        )
    own: dict[str, Any] = {"mola": {"top_k": point.top_k}, "dynmole": {"keep_top_k": point.top_k}}.get(point.method, {})
    config_type = METHODS[point.method].config_type
    return config_type(num_experts=point.experts, target_modules=point.targets, **own, **common)


def micro_batch(job: JobPoint, vocab: int, *, seed: int = 0, step: int = 0) -> MicroBatch:
    """Make random tokens of the point's lengths, with the last ones of each row learned.

    The learned ones are spread evenly over the rows.
    """
    rng = np.random.default_rng([seed, step])
    rows = tuple(rng.integers(0, vocab, n) for n in job.lengths)
    left, room = job.labels, job.tokens - len(rows)
    labels = []
    for row in rows:
        own = round(left * (len(row) - 1) / room) if room else 0
        left, room = left - own, room - (len(row) - 1)
        marked = row.copy()
        marked[: len(row) - own] = IGNORED
        labels.append(marked)
    samples = tuple(range(step * len(rows), (step + 1) * len(rows)))
    return MicroBatch(tokens=rows, labels=tuple(labels), samples=samples, step=step)


class PointStep:
    """Holds the jobs of a point on a model, with their AdamW.

    `run()` is one fused step and every job's optimizer step.
    """

    def __init__(self, model: FusedModel, point: StepPoint, *, seed: int = 0) -> None:
        self.model, self.point = model, point
        model.recompute = point.recompute
        # On a GPU the values are made there: on the CPU those of a large point take longer than all
        # of its steps
        device = model.base.device
        make = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else None
        self.adapters: list[Adapter] = [
            model.new_adapter(
                f"job-{i}", job.adapter.method, adapter_config(job.adapter), seed=seed + i, generator=make
            )
            for i, job in enumerate(point.jobs)
        ]
        self.parts = [
            Part(adapter=adapter, batch=micro_batch(job, model.base.vocab, seed=seed + i))
            for i, (adapter, job) in enumerate(zip(self.adapters, point.jobs, strict=True))
        ]
        self._params = [torch.nn.Parameter(adapter.slab.params) for adapter in self.adapters]
        self._optimizers = [torch.optim.AdamW([param], lr=1e-4, fused=True) for param in self._params]
        for param, adapter in zip(self._params, self.adapters, strict=True):
            param.grad = adapter.slab.grads
        self.optimize()  # makes the moments

    def optimize(self) -> None:
        """Run every job's optimizer step."""
        for adapter, optimizer in zip(self.adapters, self._optimizers, strict=True):
            optimizer.step()
            adapter.slab.version += 1
            adapter.slab.grads.zero_()

    def forward_backward(self) -> None:
        """Run the fused step without reading anything back."""
        layout = self.model.layout(self.parts)
        self.model.forward_backward(layout)

    def run(self) -> None:
        """Run one step of every job, with its optimizer."""
        self.model.step(self.parts)
        self.optimize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Holds the bytes of live storages."""

    weights: int
    state: int
    """Adapters, gradients and moments of all jobs of the step."""
    dynamic: int
    """Peak of the step on top of both.

    It is activations, compute copies, temporaries of kernels and optimizers.
    """

    @property
    def total(self) -> int:
        """Return the sum of all three parts."""
        return self.weights + self.state + self.dynamic


def measure_peak(model: FusedModel, point: StepPoint, *, limit_bytes: float | None = None) -> Peak:
    """Run one step and return its peak.

    `limit_bytes` limits everything together; raises MemoryLimitError beyond it.
    """
    gc.collect()
    weights = model.base.weight_bytes
    tracker = StorageTracker()
    tracker.ignore([*model.base.hf.parameters(), *model.base.hf.buffers()])
    with tracker:
        step = PointStep(model, point)
    state = tracker.live
    tracker.restart()
    if limit_bytes is not None:
        tracker.limit_bytes = limit_bytes - weights
    with tracker:
        step.run()
    return Peak(weights=weights, state=state, dynamic=tracker.peak - state)
