"""Routers: logits of every job's own gate, and the statistics that auxiliary losses are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.groups import JobGroup


class _RouterLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, group: JobGroup, key: str) -> Tensor:
        gates = [adapter.slab.param(key) for adapter in group.adapters]
        ctx.save_for_backward(x)
        ctx.group, ctx.key = group, key
        wide = gates[0].dtype
        if group.exact or len(gates) == 1:
            out = torch.empty(x.shape[0], gates[0].shape[0], dtype=wide, device=x.device)
            for (a, b), gate in zip(group.slices, gates, strict=True):
                torch.mm(x[a:b].to(wide), gate.t(), out=out[a:b])
            return out
        # One dense GEMM against all gates and a pick of each row's own: a grouped fp32 GEMM may loop on the host (CUDA)
        every = (x.to(wide) @ torch.cat(gates).t()).view(x.shape[0], len(gates), -1)
        return every[torch.arange(x.shape[0], device=x.device), group.job_of_row]

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        (x,) = ctx.saved_tensors
        group: JobGroup = ctx.group
        gates = [adapter.slab.param(ctx.key) for adapter in group.adapters]
        wide = gates[0].dtype
        d_x = torch.empty_like(x)
        # Job by job in every mode: in one product zeros of one job would meet another's NaN (0 * NaN)
        for (a, b), gate, adapter in zip(group.slices, gates, group.adapters, strict=True):
            d_x[a:b] = grad[a:b] @ gate
            adapter.slab.grad(ctx.key).addmm_(grad[a:b].t(), x[a:b].to(wide))
        return d_x, None, None, None


def router_logits(x: Tensor, anchor: Tensor, group: JobGroup, key: str) -> Tensor:
    """Gate logits in fp32: x [rows of the group, n_in] -> [rows, experts]; the gates' gradients go to their slabs.

    x itself is kept for the backward pass, not its fp32 copy.
    """
    result: Tensor = _RouterLogits.apply(x, anchor, group, key)  # type: ignore[no-untyped-call]
    return result


def sum_per_job(values: Tensor, group: JobGroup) -> Tensor:
    """[rows, n] -> [jobs, n]: differentiable sums over each job's rows alone (a product with ones and zeros would carry
    one job's NaN to all)."""
    return torch.stack([values[a:b].sum(0) for a, b in group.slices])


def rowwise(function: Callable[[Tensor], Tensor], values: Tensor, group: JobGroup) -> Tensor:
    """A function of each row alone, applied in exact mode to one job's rows at a time."""
    if not group.exact or len(group.slices) == 1:
        return function(values)
    return torch.cat([function(part) for part in torch.split(values, group.sizes)])
