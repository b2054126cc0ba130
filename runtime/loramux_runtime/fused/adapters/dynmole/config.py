"""This module has the configuration of DynMoLE."""

from __future__ import annotations

from dataclasses import dataclass

from loramux_runtime.fused.adapters.checks import check_experts, check_lora, check_number, check_whole
from loramux_traces.limits import LARGEST


@dataclass(frozen=True, slots=True, kw_only=True)
class DynMoleConfig:
    """DynMoLE is y = W x + sum_e w_e s B_e A_e drop(x), with one gate per linear.

    w = p * mask(p), p = softmax(W_g x). The mask keeps the experts, largest first, up to a
    cumulative probability of `top_p`, at least `keep_top_k`, and all of them where the entropy of p
    exceeds `entropy_threshold`.
    """

    rank: int = 24
    alpha: float = 48.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "mlp"
    num_experts: int = 6
    use_rslora: bool = False
    entropy_threshold: float = 0.9
    """With 1 or more it never routes softly."""
    entropy_index: float = 1.1
    """Tsallis q; 1 is Shannon's."""
    entropy_eps: float = 1e-5
    """Added to p inside the entropy (0 for q = 1)."""
    keep_top_k: int = 2
    top_p: float = 0.75
    router_aux_loss_coef: float = 1e-3
    router_dyn_loss_coef: float = 1e-2
    inclusive_nucleus: bool = False
    """Whether to keep the expert that crosses top_p as well (the authors do not)."""
    renormalise: bool = False
    """Whether to divide the kept weights by their sum (the authors do not)."""
    normalised_entropy: bool = True

    def __post_init__(self) -> None:
        check_lora(self)
        check_experts(self.num_experts)
        q = self.entropy_index
        check_number("entropy_index", q, 0.0, LARGEST)
        if q == 0 or (q != 1.0 and abs(q - 1.0) < 1e-2):
            raise ValueError(f"entropy_index must be 1, or above 0 and at least 0.01 away from 1, not {q}")
        check_number("entropy_eps", self.entropy_eps, 0.0, 1.0)
        if self.entropy_eps == 1.0:
            raise ValueError("entropy_eps must be below 1, not 1")
        check_whole("keep_top_k", self.keep_top_k, 0, self.num_experts)
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_number("entropy_threshold", self.entropy_threshold, 0.0, float("inf"))
        check_number("router_aux_loss_coef", self.router_aux_loss_coef, -LARGEST, LARGEST)
        check_number("router_dyn_loss_coef", self.router_dyn_loss_coef, -LARGEST, LARGEST)
