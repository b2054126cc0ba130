"""This module has the configuration of MixLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field

from loramux_runtime.fused.adapters.checks import check_lora
from loramux_runtime.fused.adapters.lora.config import LoraConfig

FFN = ("gate_proj", "up_proj", "down_proj")


def _attention() -> LoraConfig:
    return LoraConfig(rank=16, alpha=32.0, dropout=0.05, target_modules="attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixLoraConfig:
    """MixLoRA takes the top-k of `num_experts` FFNs.

    They differ by low-rank updates of one frozen FFN.

    `attention`: an ordinary LoRA on the attention projections, configured on its own; None for
    none.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    num_experts: int = 8
    top_k: int = 2
    expert_modules: tuple[str, ...] = FFN
    """Which of gate_proj, up_proj, down_proj the experts change."""
    attention: LoraConfig | None = field(default_factory=_attention)
    router_aux_loss_coef: float = 1e-3
    router_init_std: float = 0.02
    use_rslora: bool = False
    use_dora: bool = False
    """Whether experts are DoRA's: the down-projection then runs on every slot instead of once."""

    def __post_init__(self) -> None:
        check_lora(self.rank, self.alpha, self.dropout)
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, not {self.num_experts}")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k must be from 1 to num_experts ({self.num_experts}), not {self.top_k}")
        unknown = [name for name in self.expert_modules if name not in FFN]
        if unknown or not self.expert_modules:
            raise ValueError(f"expert_modules must be some of {', '.join(FFN)}, not {self.expert_modules}")
