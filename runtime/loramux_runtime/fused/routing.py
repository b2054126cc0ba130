"""Routers make the logits of every job's own gate.

The module also has the sums that the statistics of auxiliary losses are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import GroupRows
from loramux_runtime.fused.kernels.grouped import grouped_narrow


@dataclass(frozen=True, slots=True)
class Router:
    """A router has the gates of one group on one input."""

    group: GroupRows
    key: str
    """Key of the gate in each job's slab."""
    start: int
    """Row of the input where the group begins."""

    def logits(self, rows: Tensor) -> Tensor:
        """Return the gates' logits: rows [n, n_in] of the group in fp32 -> [n, experts]."""
        gates = [adapter.slab.param(self.key) for adapter in self.group.adapters]
        if len(gates) == 1:
            return grouped_narrow(rows, gates[0].unsqueeze(0), self.group.offs).contiguous()
        # One dense GEMM against all gates, then each row's own is picked: a grouped fp32 GEMM may
        # loop on the host (CUDA)
        every = (rows @ torch.cat(gates).t()).view(len(rows) * len(gates), -1)
        return every.index_select(0, self._own_cells(len(gates)))

    def backward(self, rows: Tensor, grad: Tensor, d_rows: Tensor | None) -> None:
        """Add to the gates' gradients, and to that of the rows where it is wanted."""
        # Job by job: in one product the zeros of one job would meet another's NaN (0 * NaN)
        for (a, b), adapter in zip(self.group.slices, self.group.adapters, strict=True):
            gate = adapter.slab.param(self.key)
            adapter.slab.grad(self.key).addmm_(grad[a:b].t(), rows[a:b])
            if d_rows is not None and d_rows.dtype == grad.dtype:
                d_rows[a:b].addmm_(grad[a:b], gate)
            elif d_rows is not None:
                d_rows[a:b] += grad[a:b] @ gate

    def _own_cells(self, jobs: int) -> Tensor:
        own = self.group.job_of_row
        return torch.arange(len(own), device=own.device) * jobs + own


class _RouterLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, routers: Sequence[Router]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.routers = routers
        ctx.set_materialize_grads(False)
        return (x, *(router.logits(_wide(x, router)) for router in routers))

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        d_x = outs[0]
        if ctx.needs_input_grad[0] and d_x is None:
            d_x = torch.zeros_like(x)
        for router, grad in zip(ctx.routers, outs[1:], strict=True):
            if grad is not None:
                own = None if d_x is None else d_x[router.start : router.start + len(grad)]
                router.backward(_wide(x, router), grad, own)
        return d_x, None, None


def _wide(x: Tensor, router: Router) -> Tensor:
    rows = x[router.start : router.start + router.group.n_rows]
    return rows.to(router.group.adapters[0].slab.params.dtype)


def router_logits(x: Tensor, anchor: Tensor, routers: Sequence[Router]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return (x, gate logits) of x [N, n_in]; the gates' gradients go to their slabs.

    The logits are in fp32, [rows of the group, experts] for each router.

    Hand the x that comes back to ONE operation that makes its input's gradient itself: the routers'
    gradient is added to that tensor, in place. x itself is kept for the backward pass, not its fp32
    copy.
    """
    if not routers:
        return x, ()
    same, *logits = _RouterLogits.apply(x, anchor, tuple(routers))  # type: ignore[no-untyped-call]
    return same if x.requires_grad else x, tuple(logits)


def sum_per_job(values: Tensor, group: GroupRows) -> Tensor:
    """Sum values over each job's rows, differentiably: [rows, n] -> [jobs, n].

    Each sum takes one job's rows alone, because a product with ones and zeros would carry one job's
    NaN to all.
    """
    return torch.stack([values[a:b].sum(0) for a, b in group.slices])
