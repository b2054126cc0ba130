"""MixLoRA's experts: low-rank updates of chosen (token, expert) slots, grouped by job and expert.

A slot is one of a token's k choices. Slots are sorted by (job, expert), stably, so that each group is a contiguous run
in token order; everything stays on the device: offsets come from `searchsorted` (bincount and nonzero synchronise on
CUDA), and sums back to tokens go through the inverse permutation in fixed order (no index_add).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.kernels.dropout import DropKey
from loramux_runtime.kernels.grouped import grouped_outer, grouped_rows


@dataclass(frozen=True, slots=True)
class Slots:
    """Where each slot's token is. N = rows * k slots, sorted by group."""

    tokens: Tensor
    """[N] int64: row of each sorted slot."""
    order: Tensor
    """[N] int64: sorted position -> slot number (row * k + choice)."""
    inverse: Tensor
    """[N] int64: slot number -> sorted position."""
    groups: Tensor
    """[N] int64: group of each sorted slot."""
    offs: Tensor
    """[groups] int32: end of each (job, expert) group."""
    k: int

    def to_tokens(self, values: Tensor) -> Tensor:
        """Sum the slots of each token: [N, n] -> [rows, n]."""
        rows = values.shape[0] // self.k
        return values[self.inverse].view(rows, self.k, -1).sum(1)


def make_slots(chosen: Tensor, job_of_row: Tensor, jobs: int, experts: int) -> Slots:
    """chosen [rows, k] expert indices -> slots sorted by (job, expert)."""
    k = chosen.shape[1]
    ids = (job_of_row.unsqueeze(1) * experts + chosen).flatten()
    ranked, order = torch.sort(ids, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    groups = torch.arange(1, jobs * experts + 1, device=ids.device)
    offs = torch.searchsorted(ranked, groups).to(torch.int32)
    return Slots(order // k, order, inverse, ranked, offs, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUpdate:
    """The low-rank pairs of one projection: a [groups, rank, n_in], b [groups, n_out, rank]."""

    a: Tensor
    b: Tensor
    scale: Tensor
    """[N, 1] or [1, 1]: factor of each slot, 1 / (1 - p) included."""
    drop: DropKey | None
    """Masks by token: the experts of a projection share one."""
    add_grads: Callable[[Tensor, Tensor], None]


class _TokenUpdate(torch.autograd.Function):
    """Inputs per token, outputs per slot: base[token] + s B A drop(x)[token] (gate and up)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor | None, slots: Slots, update: ExpertUpdate) -> Tensor:
        dropped = x if update.drop is None else update.drop.apply(x)
        u = grouped_rows(dropped[slots.tokens], update.a.transpose(1, 2), slots.offs)
        v = (u * update.scale).to(u.dtype)
        out = grouped_rows(v, update.b.transpose(1, 2), slots.offs)
        if base is not None:
            out += base[slots.tokens]
        ctx.save_for_backward(x, u)
        ctx.slots, ctx.update, ctx.has_base = slots, update, base is not None
        return out

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        grad = grad.contiguous()
        x, u = ctx.saved_tensors
        slots, update = ctx.slots, ctx.update
        v = (u * update.scale).to(u.dtype)
        d_u = (grouped_rows(grad, update.b, slots.offs) * update.scale).to(u.dtype)
        dropped = x if update.drop is None else update.drop.apply(x)
        update.add_grads(grouped_outer(d_u, dropped[slots.tokens], slots.offs), grouped_outer(grad, v, slots.offs))
        d_x = slots.to_tokens(grouped_rows(d_u, update.a, slots.offs))
        if update.drop is not None:
            d_x = update.drop.apply(d_x)
        return d_x, slots.to_tokens(grad) if ctx.has_base else None, None, None


class _SlotUpdate(torch.autograd.Function):
    """Inputs per slot, outputs per token: sum over a token's slots of w s B A drop(a) (down)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, slots: Slots, update: ExpertUpdate) -> Tensor:
        u = grouped_rows(_drop_slots(a, slots, update), update.a.transpose(1, 2), slots.offs)
        v = (u * update.scale * w.unsqueeze(1)).to(u.dtype)
        ctx.save_for_backward(a, w, u)
        ctx.slots, ctx.update = slots, update
        return slots.to_tokens(grouped_rows(v, update.b.transpose(1, 2), slots.offs))

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        a, w, u = ctx.saved_tensors
        slots, update = ctx.slots, ctx.update
        g = grad[slots.tokens]
        d_v = grouped_rows(g, update.b, slots.offs)
        scaled = d_v * update.scale
        d_w = (scaled * u).sum(1).to(w.dtype)
        factor = w.unsqueeze(1)
        d_u = (scaled * factor).to(u.dtype)
        v = (u * update.scale * factor).to(u.dtype)
        update.add_grads(grouped_outer(d_u, _drop_slots(a, slots, update), slots.offs), grouped_outer(g, v, slots.offs))
        return _drop_slots(grouped_rows(d_u, update.a, slots.offs), slots, update), d_w, None, None


def _drop_slots(a: Tensor, slots: Slots, update: ExpertUpdate) -> Tensor:
    if update.drop is None:
        return a
    return update.drop.at(slots.tokens).apply(a)


class _Combine(torch.autograd.Function):
    """Sum over a token's slots of w a: what the one frozen down-projection is applied to."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, w: Tensor, slots: Slots) -> Tensor:
        ctx.save_for_backward(a, w)
        ctx.slots = slots
        return slots.to_tokens(a * w.unsqueeze(1).to(a.dtype))

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        a, w = ctx.saved_tensors
        g = grad[ctx.slots.tokens]
        return g * w.unsqueeze(1).to(a.dtype), (g * a).sum(1).to(w.dtype), None


def token_update(x: Tensor, base: Tensor | None, slots: Slots, update: ExpertUpdate) -> Tensor:
    """x [rows, n_in], base [rows, n_out] or None -> [N, n_out] in sorted slots."""
    result: Tensor = _TokenUpdate.apply(x, base, slots, update)  # type: ignore[no-untyped-call]
    return result


def slot_update(a: Tensor, w: Tensor, slots: Slots, update: ExpertUpdate) -> Tensor:
    """a [N, n_in] in sorted slots, w [N] their weights -> [rows, n_out]."""
    result: Tensor = _SlotUpdate.apply(a, w, slots, update)  # type: ignore[no-untyped-call]
    return result


def combine(a: Tensor, w: Tensor, slots: Slots) -> Tensor:
    """a [N, n] in sorted slots, w [N] -> [rows, n]."""
    result: Tensor = _Combine.apply(a, w, slots)  # type: ignore[no-untyped-call]
    return result


class _SetRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, values: Tensor, start: int, add: bool) -> Tensor:
        ctx.start, ctx.rows, ctx.add = start, values.shape[0], add
        ctx.mark_dirty(y)
        rows = y[start : start + values.shape[0]]
        rows.add_(values) if add else rows.copy_(values)
        return y

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        mine = grad[ctx.start : ctx.start + ctx.rows]
        if not ctx.add:
            mine = mine.clone()
            grad = grad.clone()
            grad[ctx.start : ctx.start + ctx.rows] = 0
        return grad, mine, None, None


def add_rows(y: Tensor, values: Tensor, start: int) -> Tensor:
    """Add to the rows of y from `start` on, in place."""
    result: Tensor = _SetRows.apply(y, values, start, True)  # type: ignore[no-untyped-call]
    return result


def set_rows(y: Tensor, values: Tensor, start: int) -> Tensor:
    """Replace the rows of y from `start` on, in place; they pass no gradient to what was there."""
    result: Tensor = _SetRows.apply(y, values, start, False)  # type: ignore[no-untyped-call]
    return result
