"""The fused step against the methods written out densely, in float64.

With dropout (invariants 5 and 6).
"""

from __future__ import annotations

import pytest
import torch

from loramux_runtime.fused.packing import Part

from .matrix import NAMES, batch, fused, grads, parts, shaken, worst, zero_grads
from .reference import Reference

CLOSE = 1e-10


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_step_is_the_dense_formula(name: str, dropout: float) -> None:
    model = fused("fp64")
    adapter = shaken(model, name, dropout=dropout, seed=3)
    micro = batch((9, 4, 1), 5, step=2, prompt=2)
    reference = Reference(model.base, adapter)
    loss, aux, _ = reference.run(micro, training=True)
    (loss + aux).backward()  # type: ignore[no-untyped-call]
    (outcome,) = model.step([Part(adapter=adapter, batch=micro)])
    assert outcome.loss == pytest.approx(loss.item(), rel=CLOSE)
    assert outcome.aux_loss == pytest.approx(aux.item(), rel=CLOSE)
    expected = {k: torch.zeros_like(w) if w.grad is None else w.grad for k, w in reference.weights.items()}
    assert worst(grads(adapter), expected) < CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_has_no_dropout_and_is_deterministic(name: str) -> None:
    model = fused("fp64")
    adapter = shaken(model, name, dropout=0.5, seed=4)
    part = Part(adapter=adapter, batch=batch((7, 3), 5))
    loss, _, logits = Reference(model.base, adapter).run(part.batch, training=False)
    first, second = model.score(adapter, part.batch), model.score(adapter, part.batch)
    assert first == second
    assert first.loss == pytest.approx(loss.item(), rel=CLOSE)
    for mine, theirs in zip(model.logits([part])[0], logits, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=0, atol=CLOSE)
    assert not adapter.slab.grads.any()


@pytest.mark.parametrize("exact", [True, False])
def test_all_methods_in_one_step(exact: bool) -> None:
    model = fused("fp64", exact=exact)
    jobs = parts(model, dropout=0.2)
    outcomes = model.step(jobs)
    together = [grads(part.adapter) for part in jobs]
    zero_grads(jobs)
    for part, outcome, mine in zip(jobs, outcomes, together, strict=True):
        (alone,) = model.step([part])
        assert outcome.loss == pytest.approx(alone.loss, rel=CLOSE)
        assert outcome.aux_loss == pytest.approx(alone.aux_loss, rel=CLOSE)
        assert worst(mine, grads(part.adapter)) < CLOSE


def test_an_expert_without_a_token_gets_a_zero_gradient() -> None:
    model = fused("fp64")
    for name in ("mixlora", "mixlora-dora", "mola", "dynmole-shannon"):
        adapter = shaken(model, name, dropout=0.1)
        adapter.slab.grads.zero_()
        # 2 tokens: some expert is not chosen
        (outcome,) = model.step([Part(adapter=adapter, batch=batch((2,)))])
        found = grads(adapter)
        assert all(bool(torch.isfinite(value).all()) for value in found.values())
        idle = [key for key, value in found.items() if "experts" in key and not value.any()]
        assert idle and outcome.n_tokens == 2, name
