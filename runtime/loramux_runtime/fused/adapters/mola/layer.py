"""This module has the routing of MoLA and LoRAMoE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.balance import balance_loss, balance_stats, top_k_weights
from loramux_runtime.fused.adapters.base import GroupRows
from loramux_runtime.fused.adapters.mola.config import LoraMoeConfig, MolaConfig
from loramux_runtime.fused.adapters.plugin import Plugin
from loramux_runtime.fused.sites import BaseSites
from loramux_runtime.fused.stats import RouterStats


class Mola(Plugin):
    """MoLA takes the top-k of each linear's experts and renormalises their weights.

    The number of experts may differ by layer.
    """

    name: ClassVar[str] = "mola"
    config_type: ClassVar[type[Any]] = MolaConfig

    def experts_of(self, config: MolaConfig, layer: int, base: BaseSites) -> int:
        """Return the number of experts of a layer's linears."""
        return config.experts_of(layer, base.layers)

    def rule(self, config: MolaConfig) -> tuple[Any, ...]:
        """Return k, which a group of jobs must share."""
        return (config.top_k,)

    def route(self, group: GroupRows, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Return w = p over the k largest, divided by their sum; zero elsewhere."""
        p = torch.softmax(logits, 1)
        chosen, weights = top_k_weights(p, group.config.top_k)
        if any(adapter.config.router_aux_loss_coef for adapter in group.adapters):
            stats.add(group.index, experts, balance_stats(p, chosen, group))
        return torch.zeros_like(p).scatter(1, chosen, weights)

    def auxiliary(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return the load-balance loss, where a job asks for it."""
        return balance_loss(group, stats, [adapter.config.router_aux_loss_coef for adapter in group.adapters])


class LoraMoe(Plugin):
    """LoRAMoE routes softly over all experts (arXiv 2312.09979): MoLA with the mask off."""

    name: ClassVar[str] = "loramoe"
    config_type: ClassVar[type[Any]] = LoraMoeConfig

    def route(self, group: GroupRows, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Return the weights w = softmax(logits)."""
        return torch.softmax(logits, 1)
