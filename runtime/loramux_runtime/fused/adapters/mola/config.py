"""This module has the configuration of MoLA and LoRAMoE."""

from __future__ import annotations

from dataclasses import dataclass

from loramux_profiles.widths import experts_by_layer
from loramux_runtime.fused.adapters.checks import check_lora


@dataclass(frozen=True, slots=True, kw_only=True)
class MolaConfig:
    """MoLA is y = W x + sum_e w_e s B_e A_e drop(x), with one gate per linear.

    w is the renormalised top-k of softmax(W_g x).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    num_experts: int | tuple[int, ...] = 8
    """One number, or one per group of layers from the first to the last.

    MoLA's 2468 is (2, 4, 6, 8).
    """
    top_k: int = 2
    router_aux_loss_coef: float = 0.0
    """Factor of the load-balance loss, which is off by default as in the paper."""
    use_rslora: bool = False

    def __post_init__(self) -> None:
        check_lora(self.rank, self.alpha, self.dropout)
        counts = (self.num_experts,) if isinstance(self.num_experts, int) else self.num_experts
        if not counts or min(counts) < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")
        if not 1 <= self.top_k <= min(counts):
            raise ValueError(f"top_k must be from 1 to the fewest experts of a layer ({min(counts)}), not {self.top_k}")

    def experts_of(self, layer: int, layers: int) -> int:
        """Return the number of experts of a layer.

        Raises ValueError where there are more groups than layers.
        """
        return experts_by_layer(self.num_experts, layers)[layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMoeConfig:
    """LoRAMoE uses all experts, weighted by softmax(W_g x)."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "mlp"
    num_experts: int = 8
    use_rslora: bool = False

    def __post_init__(self) -> None:
        check_lora(self.rank, self.alpha, self.dropout)
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")
