"""This module has the top-k weights and the load-balance loss of MixLoRA and MoLA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import GroupRows
from loramux_runtime.fused.routing import sum_per_job
from loramux_runtime.fused.stats import RouterStats


def top_k_weights(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the k largest p, and their values divided by the values' sum.

    p [rows, experts] -> indices [rows, k], weights [rows, k].
    """
    top, chosen = torch.topk(p, k, dim=1)
    return chosen, top / top.sum(1, keepdim=True)


def balance_stats(p: Tensor, chosen: Tensor, group: GroupRows) -> Tensor:
    """Return for each expert the sum of its probabilities, and how often it was chosen.

    The shape is [jobs, 2 experts]. How often it was chosen has no gradient.
    """
    counts = torch.zeros_like(p).scatter(1, chosen, 1.0)
    return torch.cat([sum_per_job(p, group), sum_per_job(counts.detach(), group)], 1)


def balance_loss(group: GroupRows, stats: RouterStats, coefs: Sequence[float]) -> Tensor | None:
    """Return the load-balance loss of each job (arXiv 2404.15159, eq. 9 and its code).

    It is coef * E * sum_i f_i P_i: f_i is how often expert i was chosen per token (over all k
    choices), and P_i is its mean probability, over the tokens of all routers at once. With balanced
    experts it is k * coef.

    With several numbers of experts (MoLA) each has a loss of its own; they are averaged by their
    routers.
    """
    found = stats.of_group(group.index)
    if not found or not any(coefs):
        return None
    routers = sum(count for _, _, count in found)
    total: Tensor | None = None
    for experts, sums, count in found:
        tokens = count * group.sizes_column(sums.dtype)
        mean = sums / tokens
        loss = (mean[:, :experts] * mean[:, experts:]).sum(1) * (experts * count / routers)
        total = loss if total is None else total + loss
    assert total is not None
    return total * group.put(coefs, total.dtype)
