"""gradcheck of every method in float64 with dropout, through the whole model and its kernels (invariant 5).

Fast mode: a random direction for each tensor of the slab. DoRA's norm is a constant to the gradient by definition
(section 4.3 of its paper), so it is held fixed.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from loramux_runtime.adapters.dora import row_norms
from loramux_runtime.model import FusedModel
from loramux_runtime.packing import Part

from .matrix import NAMES, batch, fused, parts, shaken


class _Step(torch.autograd.Function):
    """The job's loss as a function of its tensors: copies them into the slab and runs the product's step."""

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


def _hold_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[tuple[int, int], Tensor] = {}

    def held(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return known.setdefault((weight.data_ptr(), a.data_ptr()), row_norms(weight, a, b, scale))

    for name, module in list(sys.modules.items()):
        if name.startswith("loramux_runtime.") and getattr(module, "row_norms", None) is row_norms:
            monkeypatch.setattr(module, "row_norms", held)


def _check(model: FusedModel, jobs: list[Part], job: int, most: int | None = None) -> bool:
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


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _hold_norms(monkeypatch)
    model = fused("fp64")
    adapter = shaken(model, name, dropout=dropout, seed=2)
    assert _check(model, [Part(adapter=adapter, batch=batch((5, 3), 1, step=1))], 0)


@pytest.mark.parametrize("options", [{"recompute": True}, {"exact": False}], ids=str)
@pytest.mark.parametrize("name", ["rslora", "mixlora-part", "dynmole"])
def test_among_peers(name: str, options: dict[str, bool]) -> None:
    model = fused("fp64", **options)
    jobs = parts(model, (name, "mixlora", name), dropout=0.2)
    assert _check(model, jobs, 0)


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused("fp64")
    jobs = [Part(adapter=shaken(model, "lora", seed=2), batch=batch((5, 3), 1))]
    step = model.step

    def wrong(parts_: list[Part]) -> Any:
        outcomes = step(parts_)
        parts_[0].adapter.slab.grads.mul_(1.001)
        return outcomes

    monkeypatch.setattr(model, "step", wrong)
    with pytest.raises(GradcheckError):
        _check(model, jobs, 0, most=1)
