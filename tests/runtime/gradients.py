"""gradcheck of a job's loss with respect to its slab's tensors, through the product's step."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from loramux_runtime.fused.adapters.dora import row_norms
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part


class _Step(torch.autograd.Function):
    """The job's loss as a function of its tensors.

    Copies them into the slab and runs the product's step.
    """

    @staticmethod
    def forward(ctx: Any, model: FusedModel, jobs: list[Part], job: int, *tensors: Tensor) -> Tensor:
        slab = jobs[job].adapter.slab
        keys = [spec.key for spec in slab.layout.specs][: len(tensors)]
        for key, value in zip(keys, tensors, strict=True):
            slab.param(key).copy_(value)
        slab.version += 1
        slab.grads.zero_()
        with torch.enable_grad():
            outcome = model.step(jobs)[job]
        ctx.found = [slab.grad(key).clone() for key in keys]
        return torch.tensor(outcome.loss + outcome.aux_loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *(outs[0] * grad for grad in ctx.found))


def hold_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep DoRA's norms at their first values: they are constants to its gradient by definition."""
    known: dict[tuple[int, int], Tensor] = {}

    def held(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return known.setdefault((weight.data_ptr(), a.data_ptr()), row_norms(weight, a, b, scale))

    for name, module in list(sys.modules.items()):
        if name.startswith("loramux_runtime.") and getattr(module, "row_norms", None) is row_norms:
            monkeypatch.setattr(module, "row_norms", held)


def check(model: FusedModel, jobs: list[Part], job: int, most: int | None = None) -> bool:
    """Fast mode: a random direction for each tensor (of the first `most`)."""
    slab = jobs[job].adapter.slab
    tensors = [slab.param(spec.key).clone().requires_grad_() for spec in slab.layout.specs[:most]]
    return torch.autograd.gradcheck(
        lambda *values: _Step.apply(model, jobs, job, *values),  # type: ignore[no-untyped-call]
        tensors,
        eps=1e-6,
        atol=1e-8,
        rtol=1e-5,
        fast_mode=True,
        check_undefined_grad=False,
        check_batched_grad=False,
        nondet_tol=0.0,
    )
