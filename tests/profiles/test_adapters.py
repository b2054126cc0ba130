"""Adapters: parameter counts and FLOPs of the published formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loramux_profiles.adapters import AdapterCost, active_experts, adapter_cost
from loramux_profiles.memory import layer_bytes
from loramux_profiles.shape_catalog import load_shape

SHAPE = load_shape("llama-2-7b")
METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")


def _cost(method: str, **fields: object) -> AdapterCost:
    values = {"rank": 16, "experts": 1 if method == "lora" else 8, "top_k": 2, "target_modules": "all-linear", **fields}
    return adapter_cost(SHAPE, method=method, **values)  # type: ignore[arg-type]


def test_mixlora_parameters_of_llama_2_7b() -> None:
    cost = _cost("mixlora")
    assert cost.params - cost.router_params == 202_375_168
    assert cost.router_params == 1_048_576


def test_lora_parameters() -> None:
    # what peft prints for r16 on all linears of LLaMA-2-7B
    assert _cost("lora").params == 39_976_960
    assert _cost("lora", target_modules="qv", rank=8).params == 4_194_304  # Alpaca-LoRA
    parts = sum(_cost("lora", target_modules=t).params for t in ("attention", "mlp"))
    assert parts == _cost("lora").params
    eight = adapter_cost(
        load_shape("llama-3-8b"), method="lora", rank=16, experts=1, top_k=1, target_modules="all-linear"
    )
    assert eight.params == 41_943_040


def test_plugin_methods_have_a_router_on_each_linear() -> None:
    lora = _cost("lora").params
    router = 32 * 8 * (6 * 4096 + 11008)
    for method in ("mola", "loramoe", "dynmole"):
        cost = _cost(method)
        assert cost.router_params == router
        assert cost.params == 8 * lora + router


def test_mixlora_flops_follow_the_formula() -> None:
    d, f, k, r, e = 4096, 11008, 2, 16, 8
    attention = 6 * 4 * r * (d + d)
    assert _cost("mixlora").flops_per_token == 32 * (attention + 18 * k * r * (d + f) + 6 * d * e)


def test_lora_flops_are_six_a_parameter() -> None:
    assert _cost("lora").flops_per_token == 6 * 39_976_960


def test_mixlora_without_ffn_targets_is_lora() -> None:
    assert _cost("mixlora", target_modules="attention") == _cost("lora", target_modules="attention")


def test_activations_are_those_of_the_notes() -> None:
    d, f, heads, r = 4096, 11008, 32, 16
    formula = 16 * d + 2 * (d + 2 * d) + 8 * f + 14 * r + 4 * heads + 8
    assert layer_bytes(SHAPE, _cost("lora")) == formula
    assert layer_bytes(SHAPE, _cost("lora"), dropout=True) == formula + 3 * (6 * d + f)
    more = layer_bytes(SHAPE, _cost("mixlora")) - formula
    assert more / (2 * f) == pytest.approx(5, rel=0.02)


def test_fewer_targets_never_cost_more() -> None:
    for method in METHODS:
        whole, some = _cost(method), _cost(method, target_modules="qv")
        assert some.params < whole.params
        assert some.flops_per_token < whole.flops_per_token
        assert layer_bytes(SHAPE, some) < layer_bytes(SHAPE, whole)


def test_dense_path_does_not_depend_on_the_routing() -> None:
    assert _cost("dynmole", top_k=2) == _cost("dynmole", top_k=4)
    assert _cost("dynmole", progress=0.0) == _cost("dynmole", progress=1.0)


def test_dynmole_experts_fall_from_their_first_number_to_keep_top_k() -> None:
    points = [active_experts("dynmole", 8, 2, p / 10) for p in range(11)]
    assert points[0] == pytest.approx(7.3)
    assert all(a > b for a, b in pairwise(points))
    assert 2 < points[-1] < 2.2
    fine = [active_experts("dynmole", 8, 2, (i + 0.5) / 1000) for i in range(1000)]
    assert active_experts("dynmole", 8, 2) == pytest.approx(sum(fine) / 1000, rel=1e-5)
    assert active_experts("dynmole", 2, 2, 0.0) == 2


def test_skip_path_follows_the_routing() -> None:
    early, late = (_cost("dynmole", expert_path="skip", progress=p).flops_per_token for p in (0.0, 1.0))
    assert late < early < _cost("dynmole").flops_per_token
    assert _cost("mola", expert_path="skip").active_experts == 2
    assert _cost("loramoe", expert_path="skip").flops_per_token == _cost("loramoe").flops_per_token
    assert _cost("mola", expert_path="skip").saved_bytes > _cost("mola").saved_bytes
