"""gradcheck of every method in float64 with dropout (invariant 5).

Through the whole model and its kernels.

Fast mode: a random direction for each tensor of the slab. DoRA's norm is a constant to the gradient
by definition (section 4.3 of its paper), so it is held fixed.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch.autograd.gradcheck import GradcheckError

from loramux_runtime.fused.packing import Part

from .gradients import check, hold_norms
from .matrix import NAMES, batch, fused, parts, shaken


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_norms(monkeypatch)
    model = fused("fp64")
    adapter = shaken(model, name, dropout=dropout, seed=2)
    assert check(model, [Part(adapter=adapter, batch=batch((5, 3), 1, step=1))], 0)


@pytest.mark.parametrize("options", [{"recompute": True}, {"exact": False}], ids=str)
@pytest.mark.parametrize("name", ["rslora", "mixlora-part", "dynmole"])
def test_among_peers(name: str, options: dict[str, bool]) -> None:
    model = fused("fp64", **options)
    jobs = parts(model, (name, "mixlora", name), dropout=0.2)
    assert check(model, jobs, 0)


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
        check(model, jobs, 0, most=1)
