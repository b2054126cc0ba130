"""This module has MixLoRA's slots, and the operations on them that DoRA experts are made of.

`expert_ffn` has the operations of ordinary experts.

A slot is one of a token's k choices. Slots are sorted by (job, expert), stably, so that each group
is a contiguous run in token order. Everything stays on the device: offsets come from `searchsorted`
(bincount and nonzero synchronise on CUDA), and sums back to tokens go through the inverse
permutation in fixed order (no index_add).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.kernels.dropout import DropKey
from loramux_runtime.fused.kernels.grouped import grouped_outer, grouped_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """Slots say where each slot's token is; N = rows * k slots are sorted by group."""

    tokens: Tensor
    """[N] int64: row of each sorted slot."""
    order: Tensor
    """[N] int64: sorted position -> slot number (row * k + choice)."""
    inverse: Tensor
    """[k, rows] int64: sorted position of each token's choices."""
    groups: Tensor
    """[N] int64: group of each sorted slot."""
    offs: Tensor
    """[groups] int32: end of each (job, expert) group."""
    cells: Tensor
    """[N] int64: row * experts + expert of each sorted slot."""
    job_offs: Tensor
    """[jobs] int32: end of each job's rows."""
    experts: int

    def to_tokens(self, values: Tensor) -> Tensor:
        """Sum the slots of each token: [N, n] -> [rows, n]."""
        out = values.index_select(0, self.inverse[0])
        for choice in self.inverse[1:]:
            out += values.index_select(0, choice)
        return out

    def pick(self, values: Tensor) -> Tensor:
        """Take the columns of each slot's expert: [rows, experts * r] -> [N, r]."""
        return values.reshape(values.shape[0] * self.experts, -1).index_select(0, self.cells)

    def spread(self, values: Tensor) -> Tensor:
        """Put each slot's values into its expert's columns: [N, r] -> [rows, experts * r].

        The other columns are zero.
        """
        rows = self.inverse.shape[1]
        out = values.new_zeros(rows * self.experts, values.shape[1])
        return out.index_copy_(0, self.cells, values).view(rows, -1)


def make_slots(chosen: Tensor, job_of_row: Tensor, job_offs: Tensor, experts: int) -> Slots:
    """Return slots sorted by (job, expert) for the expert indices `chosen` [rows, k]."""
    rows, k = chosen.shape
    ids = (job_of_row.unsqueeze(1) * experts + chosen).flatten()
    ranked, order = torch.sort(ids, stable=True)
    inverse = torch.empty_like(order)
    inverse.index_copy_(0, order, torch.arange(len(order), device=order.device))
    groups = torch.arange(1, len(job_offs) * experts + 1, device=ids.device)
    tokens = order // k
    return Slots(
        tokens=tokens,
        order=order,
        inverse=inverse.view(rows, k).t().contiguous(),
        groups=ranked,
        offs=torch.searchsorted(ranked, groups).to(torch.int32),
        cells=tokens * experts + ranked % experts,
        job_offs=job_offs,
        experts=experts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPair:
    """An expert pair has the low-rank pairs of one projection.

    a [jobs, experts, r, n_in], b [jobs, experts, n_out, r].
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    """[N, 1] or [1, 1]: factor of each slot, 1 / (1 - p) included."""
    drop: DropKey | None
    """Masks by token: the experts of a projection share one."""
    add_grads: Callable[[Tensor, Tensor], None]


class _SlotPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor | None, slots: Slots, pair: ExpertPair) -> Tensor:
        dropped = x if pair.drop is None else pair.drop.apply(x)
        own = dropped if tokens is None else dropped.index_select(0, tokens)
        u = grouped_rows(own, pair.a.flatten(0, 1).transpose(1, 2), slots.offs)
        v = (u * pair.scale).to(u.dtype)
        ctx.save_for_backward(x, u, tokens)
        ctx.slots, ctx.pair = slots, pair
        return grouped_rows(v, pair.b.flatten(0, 1).transpose(1, 2), slots.offs)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        grad = outs[0].contiguous()
        x, u, tokens = ctx.saved_tensors
        slots: Slots = ctx.slots
        pair: ExpertPair = ctx.pair
        d_u = (grouped_rows(grad, pair.b.flatten(0, 1), slots.offs) * pair.scale).to(u.dtype)
        dropped = x if pair.drop is None else pair.drop.apply(x)
        own = dropped if tokens is None else dropped.index_select(0, tokens)
        d_b = grouped_outer((u * pair.scale).to(u.dtype), grad, slots.offs).transpose(1, 2)
        pair.add_grads(grouped_outer(d_u, own, slots.offs).view_as(pair.a), d_b.view(pair.b.shape))
        d_x = grouped_rows(d_u, pair.a.flatten(0, 1), slots.offs)
        if tokens is not None:
            d_x = slots.to_tokens(d_x)
        return d_x if pair.drop is None else pair.drop.apply(d_x), None, None, None


def token_update(x: Tensor, slots: Slots, pair: ExpertPair) -> Tensor:
    """Return s B A drop(x) of each slot's token and expert: x [rows, n_in] -> [N, n_out]."""
    result: Tensor = _SlotPair.apply(x, slots.tokens, slots, pair)  # type: ignore[no-untyped-call]
    return result


def slot_update(x: Tensor, slots: Slots, pair: ExpertPair) -> Tensor:
    """Return s B A drop(x) of each slot: x [N, n_in] -> [N, n_out].

    x is by slot, and the pair's masks are by slot as well.
    """
    result: Tensor = _SlotPair.apply(x, None, slots, pair)  # type: ignore[no-untyped-call]
    return result


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, slots: Slots) -> Tensor:
        ctx.save_for_backward(a, w)
        ctx.slots = slots
        return slots.to_tokens(a * w.unsqueeze(1).to(a.dtype))

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        a, w = ctx.saved_tensors
        g = outs[0].index_select(0, ctx.slots.tokens)
        return g * w.unsqueeze(1).to(a.dtype), (g * a).sum(1).to(w.dtype), None


def combine(a: Tensor, w: Tensor, slots: Slots) -> Tensor:
    """Sum w a over a token's slots: a [N, n] in sorted slots, w [N] -> [rows, n]."""
    result: Tensor = _Combine.apply(a, w, slots)  # type: ignore[no-untyped-call]
    return result
