"""This module has the configuration of LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from loramux_runtime.fused.adapters.checks import check_lora


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """LoRA is y = W x + s B A drop(x), with s = alpha / rank (rsLoRA: alpha / sqrt(rank)).

    Raises ValueError on values without meaning.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    target_modules: str | tuple[str, ...] = "all-linear"
    """A preset (all-linear, attention, mlp, qv) or names of the base's linears."""
    use_rslora: bool = False
    use_dora: bool = False
    """Weight-decomposed: the direction W + s B A with a trained magnitude per output."""

    def __post_init__(self) -> None:
        check_lora(self)
