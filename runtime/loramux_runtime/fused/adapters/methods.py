"""This module has the adapter methods by name.

A new method is a folder and a line here.
"""

from __future__ import annotations

from typing import Final

from loramux_runtime.fused.adapters.base import Method
from loramux_runtime.fused.adapters.dynmole.layer import DynMole
from loramux_runtime.fused.adapters.lora.layer import Lora
from loramux_runtime.fused.adapters.mixlora.layer import MixLora
from loramux_runtime.fused.adapters.mola.layer import LoraMoe, Mola

METHODS: Final[dict[str, Method]] = {
    method.name: method for method in (Lora(), MixLora(), Mola(), LoraMoe(), DynMole())
}
