"""Invariants 1 to 3 and 7 of the adapter methods, and their numeric examples.

Invariant 4 is in test_bits, 5 and 6 are in test_reference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.dynmole.layer import entropy, mask
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.adapters.mola.config import LoraMoeConfig, MolaConfig
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part
from loramux_runtime.fused.sites import BaseSites, Site
from loramux_runtime.fused.slab import SlabLayout

from .matrix import NAMES, batch, case, fused, parts, shake, worst, zero_grads
from .reference import plain_model

ALL = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


def _results(model: FusedModel, adapter: Adapter) -> tuple[float, list[Tensor], dict[str, Tensor]]:
    part = Part(adapter=adapter, batch=batch((9, 5), 3, prompt=1))
    adapter.slab.grads.zero_()
    (outcome,) = model.step([part])
    return outcome.loss, model.logits([part])[0], {k: v.clone() for k, v in adapter.slab.named_grads().items()}


def _same_values(target: Adapter, source: Adapter, rename: Any) -> None:
    """Copy parameters of one adapter into another of the same shapes.

    `rename` maps names, None leaves one alone.
    """
    values, views = source.slab.named_parts(), target.slab.named_parts()
    for name, value in values.items():
        new = rename(name)
        if new is not None:
            views[new].copy_(value)
    target.slab.version += 1


def _lora_name(name: str) -> str | None:
    """Name in a LoRA file of a single-expert mixture's tensor."""
    if "moe_gate" in name:
        return None
    _, _, rest = name.partition(".")
    return f"base_model.model.model.{rest}".replace(".experts.0", "")


ONE_EXPERT = {
    "mixlora": MixLoraConfig(
        **ALL, num_experts=1, top_k=1, router_aux_loss_coef=0.0, attention=LoraConfig(**ALL, target_modules="attention")
    ),
    "mola": MolaConfig(**ALL, num_experts=1, top_k=1),
    "loramoe": LoraMoeConfig(**ALL, num_experts=1, target_modules="all-linear"),
    "dynmole": DynMoleConfig(**ALL, num_experts=1, keep_top_k=1, target_modules="all-linear", router_aux_loss_coef=0.0),
}


@pytest.mark.parametrize("method", ONE_EXPERT)
def test_1_one_expert_is_lora(method: str) -> None:
    model = fused("fp64")
    mixture = shake(model.new_adapter("m", method, ONE_EXPERT[method]))
    lora = model.new_adapter("l", "lora", LoraConfig(**ALL))
    _same_values(lora, mixture, _lora_name)
    mine, theirs = _results(model, mixture), _results(model, lora)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-12)
    for one, other in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    gates = {name: grad for name, grad in mine[2].items() if "moe_gate" in name}
    assert gates and all(float(grad.abs().max()) < 1e-12 for grad in gates.values())
    renamed = {new: grad for name, grad in mine[2].items() if (new := _lora_name(name)) is not None}
    assert worst(renamed, theirs[2]) < 1e-11


def test_1_one_expert_has_no_entropy_and_no_nan() -> None:
    for q, eps in ((1.1, 1e-5), (1.0, 0.0), (0.5, 0.0)):
        config = DynMoleConfig(num_experts=1, keep_top_k=1, entropy_index=q, entropy_eps=eps)
        assert entropy(torch.ones(3, 1), config).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_1_a_fresh_adapter_is_the_base(name: str) -> None:
    model = fused("fp64")
    plain = plain_model(model.base)
    part = Part(adapter=model.new_adapter("j", *case(name)), batch=batch((9, 5)))
    for row, mine in zip(part.batch.tokens, model.logits([part])[0], strict=True):
        with torch.no_grad():
            expected = plain(torch.from_numpy(row)[None], use_cache=False).logits[0]
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        ("mola", MolaConfig(**ALL, num_experts=3, top_k=3, target_modules="mlp")),
        ("dynmole", DynMoleConfig(**ALL, num_experts=3, entropy_threshold=1e-9, router_aux_loss_coef=0.0, router_dyn_loss_coef=0.0)),
        ("dynmole", DynMoleConfig(**ALL, num_experts=3, entropy_threshold=2.0, keep_top_k=3, router_aux_loss_coef=0.0, router_dyn_loss_coef=0.0)),
    ],
    ids=["mola-k=E", "dynmole-threshold-0", "dynmole-keep-all"],
)  # fmt: skip
def test_2_all_experts_is_loramoe(other: tuple[str, Any]) -> None:
    model = fused("fp64")
    soft = shake(model.new_adapter("s", "loramoe", LoraMoeConfig(**ALL, num_experts=3)))
    adapter = model.new_adapter("o", *other)
    _same_values(adapter, soft, lambda name: name.replace("loramoe", other[0]))
    mine, theirs = _results(model, adapter), _results(model, soft)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-12)
    renamed = {name.replace(other[0], "loramoe"): grad for name, grad in mine[2].items()}
    assert worst(renamed, theirs[2]) < 1e-11


@pytest.mark.parametrize(
    ("p", "h", "w"),
    [
        ([0.3, 0.25, 0.2, 0.1, 0.05, 0.05, 0.03, 0.02], 0.8408, [0.3, 0.25, 0.2, 0, 0, 0, 0, 0]),
        ([0.5, 0.2, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03], 0.7369, [0.5, 0.2, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_3_the_papers_routing_by_numbers(p: list[float], h: float, w: list[float]) -> None:
    config = DynMoleConfig(num_experts=8)
    row = torch.tensor([p], dtype=torch.float64)
    found = entropy(row, config)
    assert found.item() == pytest.approx(h, abs=5e-5)
    assert (row * mask(row, found, config))[0].tolist() == w


def test_3_uniform_entropy() -> None:
    row = torch.full((1, 8), 1 / 8, dtype=torch.float64)
    assert entropy(row, DynMoleConfig(num_experts=8)).item() == pytest.approx(0.999619, abs=5e-7)
    for q in (1.1, 1.0, 0.5, 2.0):
        config = DynMoleConfig(num_experts=8, entropy_index=q, entropy_eps=0.0)
        assert entropy(row, config).item() == pytest.approx(1.0, abs=1e-12)


def test_3_ties_keep_the_first_and_the_crossing_expert_is_left_out() -> None:
    config = DynMoleConfig(num_experts=4, keep_top_k=1, top_p=0.5, entropy_threshold=2.0)
    row = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.45, 0.05, 0.4]], dtype=torch.float64)
    h = entropy(row, config)
    assert mask(row, h, config).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    assert mask(row, h, replace(config, inclusive_nucleus=True)).tolist() == [[1, 1, 0, 0], [0, 1, 0, 1]]


@pytest.mark.parametrize("q", [1.005, 0.995, 0.0, -1.0, float("nan"), float("inf")])
def test_3_indices_near_one_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match="entropy_index"):
        DynMoleConfig(entropy_index=q)


@pytest.mark.parametrize(("q", "eps"), [(1.0, 0.0), (0.5, 0.0), (1.1, 1e-5)])
def test_entropy_of_a_certain_router_has_a_finite_gradient(q: float, eps: float) -> None:
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    config = DynMoleConfig(num_experts=3, entropy_index=q, entropy_eps=eps)
    value = entropy(torch.softmax(logits, 1), config).sum()
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and abs(value.item()) < 1e-3


def test_7_recompute_gives_the_same_bits() -> None:
    jobs = parts(fused(), dropout=0.3)
    plain, again = fused(), fused()
    plain.recompute = False
    zero_grads(jobs)
    first = plain.step(jobs)
    kept = [part.adapter.slab.grads.clone() for part in jobs]
    again.recompute = True
    zero_grads(jobs)
    second = again.step(jobs)
    again.recompute = False
    assert first == second
    for part, grad in zip(jobs, kept, strict=True):
        assert grad.any() and torch.equal(part.adapter.slab.grads, grad), part.adapter.job_id


LLAMA_7B = BaseSites(
    layers=32,
    hidden=4096,
    ffn=11008,
    sites=tuple(
        Site(name=name, block="self_attn", n_in=4096, n_out=4096) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    + tuple(Site(name=name, block="mlp", n_in=4096, n_out=11008) for name in ("gate_proj", "up_proj"))
    + (Site(name="down_proj", block="mlp", n_in=11008, n_out=4096),),
)


def _count(method: str, config: Any, what: str = "") -> int:
    layout = SlabLayout(METHODS[method].specs(config, LLAMA_7B))
    sizes = {
        part.name: torch.empty(spec.shape, device="meta")[part.index].numel()
        for spec in layout.specs
        for part in spec.parts
    }
    assert layout.n_params == sum(sizes.values())
    return sum(size for name, size in sizes.items() if what in name)


def test_7_parameter_counts() -> None:
    attention = 4 * (4096 + 4096)
    ffn = 3 * (4096 + 11008)
    assert _count("mixlora", MixLoraConfig(), "lora_") == 202_375_168 == 32 * 16 * (attention + 8 * ffn)
    assert _count("mixlora", MixLoraConfig(), "moe_gate") == 1_048_576 == 32 * 8 * 4096
    assert _count("lora", LoraConfig(rank=5)) == 32 * 5 * (attention + ffn)
    assert _count("lora", LoraConfig(rank=5, use_dora=True), "magnitude") == 32 * (4 * 4096 + 2 * 11008 + 4096)
    gates = 2 * 4096 + 11008
    assert _count("dynmole", DynMoleConfig()) == 32 * (24 * 6 * ffn + 6 * gates)
    mola = MolaConfig(rank=8, num_experts=(2, 4, 6, 8))
    assert _count("mola", mola) == 8 * (2 + 4 + 6 + 8) * (8 * (attention + ffn) + 4 * 4096 + gates)
    assert _count("mixlora", MixLoraConfig(use_dora=True, attention=None), "magnitude") == 32 * 8 * (2 * 11008 + 4096)
