"""This module says what an adapter adds to its base model.

It adds parameters, FLOPs and saved activations per token, and kernels per step. Derived in
profiles/README.md (MixLoRA arXiv 2404.15159, MoLA 2402.08562, DynMoLE
2504.00661).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Final, Literal

from loramux_profiles.shapes import ATTENTION, Linear, ModelShape

ExpertPath = Literal["dense", "skip"]
DYNMOLE_FIRST: Final = 7.3 / 8
"""Share of the experts that are active at initialisation.

About 7.3 of 8 experts, in runs of a CPU prototype.
"""
SHARPENING: Final = 0.25
"""Share of the training after which the surplus of active experts has fallen to 1/e (assumed)."""
SKIP_MEMORY: Final = 1.27
"""Memory of the skipping path over that of the dense path (CPU prototype, project notes)."""
LORA_KERNELS: Final = 12
"""Launches per adapted linear and step: 4 forward (cast, A, B, add), 8 backward (assumed)."""
PLUGIN_KERNELS: Final = 24
"""Launches per adapted linear and step with a router: softmax, mask, weighting (assumed)."""
EXPERT_KERNELS: Final = 96
"""Launches of MixLoRA's FFN per layer (assumed).

They are routing, sort, gathers, six grouped products and their backward pass.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCost:
    """Says what one adapter adds to its base model.

    Parameters and FLOPs per token are totals over the model; bytes are per token and layer (bf16).
    """

    params: int
    router_params: int
    """Part of `params` that belongs to the gates."""
    flops_per_token: float
    """Forward and backward of the adapter's own matrices."""
    saved_bytes: float
    """Activations of the adapter that wait for the backward pass, bytes per token and layer.

    They come on top of a frozen layer's own.
    """
    input_width: int
    """Sum of the input sizes of the adapted linears; stored dropout is proportional to it."""
    kernels_per_layer: int
    active_experts: float


def active_experts(method: str, experts: int, top_k: int, progress: float | None = None) -> float:
    """Return the number of experts that compute per token.

    It is top_k, or all of them (LoRAMoE), or for DynMoLE a number that moves with `progress` in [0,
    1].

    DynMoLE begins near 7.3/8 of its experts and falls exponentially toward keep_top_k as the router
    sharpens; None gives the mean over a run. Both ends were seen in runs of a CPU
    prototype; the speed is assumed.
    """
    if method in ("mixlora", "mola"):
        return float(min(top_k, experts))
    if method != "dynmole":
        return float(experts)
    last = float(min(top_k, experts))
    first = max(last, DYNMOLE_FIRST * experts)
    if progress is None:
        share = SHARPENING * (1 - exp(-1 / SHARPENING))
    else:
        share = exp(-min(max(progress, 0.0), 1.0) / SHARPENING)
    return last + (first - last) * share


def _pairs(linears: tuple[Linear, ...], rank: int) -> int:
    return sum(linear.lora(rank) for linear in linears)


def adapter_cost(
    shape: ModelShape,
    *,
    method: str,
    rank: int,
    experts: int,
    top_k: int,
    target_modules: str,
    expert_path: ExpertPath = "dense",
    progress: float | None = None,
) -> AdapterCost:
    """Return the cost of an adapter on a shape.

    MixLoRA has experts on the targeted projections of the FFN only, with one router a layer, and
    plain LoRA on the others. The plug-in methods (MoLA, LoRAMoE, DynMoLE) route each targeted
    linear on its own. On the dense path they cost as one LoRA of rank experts * rank whatever the
    routing; on the `skip` path they cost as their active experts.
    """
    targets = shape.targets(target_modules)
    layers = shape.layers
    saved = _input_bytes(shape, targets)
    width = sum(t.n_in for t in targets)
    if method == "lora" or (method == "mixlora" and all(t.name in ATTENTION for t in targets)):
        params = layers * _pairs(targets, rank)
        return AdapterCost(
            params=params,
            router_params=0,
            flops_per_token=6.0 * params,
            saved_bytes=saved + 2.0 * rank * len(targets),
            input_width=width,
            kernels_per_layer=LORA_KERNELS * len(targets),
            active_experts=1.0,
        )
    active = active_experts(method, experts, top_k, progress)
    if method == "mixlora":
        attention = tuple(t for t in targets if t.name in ATTENTION)
        ffn = tuple(t for t in targets if t.name not in ATTENTION)
        router = experts * shape.hidden
        per_token = _pairs(attention, rank) + active * _pairs(ffn, rank) + router
        # Each further slot keeps gate, up, their activation and their product (4f); the weighted
        # sum of the slots keeps f more: 5f at k = 2, the figure of profiles/README.md.
        extra = 2.0 * shape.ffn * (4 * (active - 1) + 1)
        return AdapterCost(
            params=layers * (_pairs(attention, rank) + experts * _pairs(ffn, rank) + router),
            router_params=layers * router,
            flops_per_token=6.0 * layers * per_token,
            saved_bytes=saved + extra + 2.0 * rank * (len(attention) + active * len(ffn)) + 8.0 * experts,
            input_width=width,
            kernels_per_layer=LORA_KERNELS * len(attention) + EXPERT_KERNELS,
            active_experts=active,
        )
    pairs = experts * _pairs(targets, rank)
    router = sum(experts * t.n_in for t in targets)
    computed = active / experts if expert_path == "skip" else 1.0
    # A_cat x and its weighted copy in bf16, the router's probabilities and mask in fp32.
    own = len(targets) * experts * (4.0 * rank + 8.0)
    return AdapterCost(
        params=layers * (pairs + router),
        router_params=layers * router,
        flops_per_token=6.0 * layers * (computed * pairs + router),
        saved_bytes=saved + own * (SKIP_MEMORY if expert_path == "skip" else 1.0),
        input_width=width,
        kernels_per_layer=PLUGIN_KERNELS * len(targets) * (experts if expert_path == "skip" else 1),
        active_experts=active if expert_path == "skip" else float(experts),
    )


def _input_bytes(shape: ModelShape, targets: tuple[Linear, ...]) -> float:
    """Return the bytes per token (bf16) of saved inputs, relative to LoRA on all linears.

    The result is 0 or negative.

    These are the inputs of linears that only an adapter's backward pass needs. The formula of
    profiles/README.md counts LoRA on every linear, but a frozen linear without an adapter does not
    keep its input. The output projection's input is kept by attention anyway.
    """
    names = {t.name for t in targets}
    unused = 0.0
    if not names & {"q", "k", "v"}:
        unused += 2.0 * shape.hidden
    if not names & {"gate", "up"}:
        unused += 2.0 * shape.hidden
    if "down" not in names:
        unused += 2.0 * shape.ffn
    return -unused
