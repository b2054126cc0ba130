"""This module has the configuration of MixLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field

from loramux_runtime.fused.adapters.checks import check_experts, check_lora, check_names, check_number, check_whole
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_traces.limits import LARGEST

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
        check_lora(self)
        check_experts(self.num_experts)
        check_whole("top_k", self.top_k, 1, self.num_experts)
        check_number("router_aux_loss_coef", self.router_aux_loss_coef, -LARGEST, LARGEST)
        check_number("router_init_std", self.router_init_std, 0.0, LARGEST)
        check_names("expert_modules", self.expert_modules)
        unknown = [name for name in self.expert_modules if name not in FFN]
        if unknown or not self.expert_modules:
            raise ValueError(f"expert_modules must be some of {', '.join(FFN)}, not {self.expert_modules}")
