"""This module knows the step that is running.

Model code stands between the caller and our modules, and passes no argument of ours through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loramux_runtime.fused.packing import StepLayout
from loramux_runtime.fused.stats import RouterStats


@dataclass(slots=True, kw_only=True)
class StepContext:
    """A step context is what attention, adapted linears and routers find."""

    layout: StepLayout
    anchor: Tensor
    """A tensor that requires a gradient.

    So backward passes of adapted linears run even where their input needs none.
    """
    stats: RouterStats = field(default_factory=RouterStats)
    """Statistics of the layer that is running."""


_running: list[StepContext] = []


def current_step() -> StepContext:
    """Return the running step; raise RuntimeError outside one."""
    if not _running:
        raise RuntimeError("the model runs only inside a fused step")
    return _running[-1]


@contextmanager
def running_step(layout: StepLayout) -> Iterator[StepContext]:
    """Run the model inside this step.

    Its backward pass runs there too, where layers are recomputed.
    """
    context = StepContext(layout=layout, anchor=torch.zeros(1, device=layout.input_ids.device, requires_grad=True))
    _running.append(context)
    try:
        yield context
    finally:
        _running.pop()
