"""This module has DynMoLE's routing and its two losses."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import GroupRows
from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.plugin import Plugin
from loramux_runtime.fused.routing import sum_per_job
from loramux_runtime.fused.stats import RouterStats


def entropy(p: Tensor, config: DynMoleConfig) -> Tensor:
    """Return the Tsallis entropy of each row of p (eq. 4 to 6 of arXiv 2504.00661).

    p [rows, experts] -> [rows].

    It is [(1 - sum (p + eps)^q) / (q - 1)], over its value at the uniform distribution
    (`normalised_entropy`). For q = 1 it is Shannon's / ln E, where eps is not used (with it the
    formula breaks). One expert has entropy 0 (0/0 by the formula).
    """
    experts, q = p.shape[1], config.entropy_index
    if experts == 1:
        return p.sum(1) * 0.0
    # A probability that underflowed to 0 has no finite slope at q <= 1
    least = torch.finfo(p.dtype).tiny
    if q == 1.0:
        value = -(p * p.clamp_min(least).log()).sum(1)
        most = math.log(experts)
    else:
        value = (1.0 - (p + config.entropy_eps).clamp_min(least).pow(q).sum(1)) / (q - 1.0)
        most = (1.0 - experts ** (1.0 - q)) / (q - 1.0)
    return value / most if config.normalised_entropy else value


def mask(p: Tensor, h: Tensor, config: DynMoleConfig) -> Tensor:
    """Return which experts are kept, as 0 and 1.

    p [rows, experts] and its entropy h [rows] -> [rows, experts].
    """
    ranked, order = torch.sort(p, dim=1, descending=True, stable=True)
    cumulative = ranked.cumsum(1)
    if config.inclusive_nucleus:
        cumulative = cumulative - ranked
        kept = cumulative < config.top_p
    else:
        kept = cumulative <= config.top_p
    kept[:, : config.keep_top_k] = True
    if config.entropy_threshold < 1.0:
        kept = kept | (h > config.entropy_threshold).unsqueeze(1)
    return torch.zeros_like(p).scatter(1, order, kept.to(p.dtype))


class DynMole(Plugin):
    """DynMoLE routes softly where the router is undecided, else by top-p with at least top-k."""

    name: ClassVar[str] = "dynmole"
    config_type: ClassVar[type[Any]] = DynMoleConfig

    def rule(self, config: DynMoleConfig) -> tuple[Any, ...]:
        """Return everything that decides the mask."""
        return (
            config.entropy_threshold,
            config.entropy_index,
            config.entropy_eps,
            config.keep_top_k,
            config.top_p,
            config.inclusive_nucleus,
            config.renormalise,
            config.normalised_entropy,
        )

    def route(self, group: GroupRows, experts: int, logits: Tensor, stats: RouterStats) -> Tensor:
        """Return the weights w = p * mask.

        They are renormalised only where the configuration asks for it. Statistics: sums of w, of p,
        of the entropy and of the experts kept.
        """
        config: DynMoleConfig = group.config
        p = torch.softmax(logits, 1)
        h = entropy(p, config)
        kept = mask(p.detach(), h.detach(), config)
        w = p * kept
        if config.renormalise:
            w = w / w.sum(1, keepdim=True).clamp_min(1e-20)
        out = torch.cat([w, p, h.unsqueeze(1), kept.sum(1, keepdim=True)], 1)
        stats.add(group.index, experts, sum_per_job(out, group))
        return w

    def auxiliary(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return dyn_coef * mean(H) + aux_coef * E * sum_i f_i P_i of each job.

        f_i is the mean of w_i (it carries gradient).
        """
        ((experts, sums, routers),) = stats.of_group(group.index)
        mean = sums / (routers * group.sizes_column(sums.dtype))
        balance = (mean[:, :experts] * mean[:, experts : 2 * experts]).sum(1) * experts
        configs = [adapter.config for adapter in group.adapters]
        dyn = group.put([c.router_dyn_loss_coef for c in configs], sums.dtype)
        aux = group.put([c.router_aux_loss_coef for c in configs], sums.dtype)
        return dyn * mean[:, 2 * experts] + aux * balance

    def active_experts(self, group: GroupRows, stats: RouterStats) -> Tensor | None:
        """Return the experts kept per token, over all routers."""
        ((experts, sums, routers),) = stats.of_group(group.index)
        kept: Tensor = sums.detach()[:, 2 * experts + 1] / (routers * group.sizes_column(sums.dtype))[:, 0]
        return kept
