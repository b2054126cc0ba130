"""This module has the configuration of DynMoLE."""

from __future__ import annotations

from dataclasses import dataclass

from loramux_runtime.fused.adapters.checks import check_lora


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
        check_lora(self.rank, self.alpha, self.dropout)
        q = self.entropy_index
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")
        if not 0 < q < float("inf") or (q != 1.0 and abs(q - 1.0) < 1e-2):
            raise ValueError(f"entropy_index must be 1, or above 0 and at least 0.01 away from 1, not {q}")
        if not 0.0 <= self.entropy_eps < 1.0:
            raise ValueError(f"entropy_eps must be from 0 to below 1, not {self.entropy_eps}")
        if not 0 <= self.keep_top_k <= self.num_experts:
            raise ValueError(f"keep_top_k must be from 0 to num_experts ({self.num_experts}), not {self.keep_top_k}")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p must be from 0 to 1, not {self.top_p}")
        if not self.entropy_threshold >= 0.0:
            raise ValueError(f"entropy_threshold must not be negative, not {self.entropy_threshold}")
