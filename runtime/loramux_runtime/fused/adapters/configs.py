"""This module has the configurations of the adapter methods by name, without torch.

`methods.METHODS` has what computes them.
"""

from __future__ import annotations

from typing import Any, Final

from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.adapters.mola.config import LoraMoeConfig, MolaConfig

CONFIGS: Final[dict[str, type[Any]]] = {
    "lora": LoraConfig,
    "mixlora": MixLoraConfig,
    "mola": MolaConfig,
    "loramoe": LoraMoeConfig,
    "dynmole": DynMoleConfig,
}
