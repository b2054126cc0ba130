"""This module has the configuration of MoLA and LoRAMoE."""

from __future__ import annotations

from dataclasses import dataclass

from loramux_profiles.widths import experts_by_layer
from loramux_runtime.fused.adapters.checks import check_experts, check_lora, check_number, check_whole
from loramux_traces.limits import LARGEST, MAX_NAMES


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
        check_lora(self)
        counts = self.num_experts if isinstance(self.num_experts, list | tuple) else (self.num_experts,)
        if not 1 <= len(counts) <= MAX_NAMES:
            raise ValueError(f"num_experts must be 1 to {MAX_NAMES} numbers, not {len(counts)}")
        for count in counts:
            check_experts(count)
        check_whole("top_k", self.top_k, 1, min(counts))
        check_number("router_aux_loss_coef", self.router_aux_loss_coef, -LARGEST, LARGEST)

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
        check_lora(self)
        check_experts(self.num_experts)
