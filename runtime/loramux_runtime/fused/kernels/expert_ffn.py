"""This operation is MixLoRA's FFN between the frozen projections, forward and backward in one.

For every slot (token, chosen expert) it computes

- g = gate + s B1 A1 drop(x)
- h = up + s B3 A3 drop(x)
- a = act(g) h

and for every token

- z = sum w a (for the ONE frozen down-projection)
- delta = sum w s B2 A2 drop(a)

How it is done:

- Where an input or an output is per token, all of a job's experts are one low-rank pair of width E
  * r, in one GEMM per job, of which each slot takes its r columns. That takes 4 times the FLOPs of
  a grouped GEMM with k = 2 of 8 experts, but nothing of width d is gathered or summed per slot, and
  a CPU core does 97 GFLOP/s 64 columns wide, 14 to 35 eight wide.
- For the backward pass it keeps x, gate and up (which others keep as well) and [slots, r]. From
  them g, h and a, three tensors as wide as the FFN per SLOT, are made again (a gather and a GEMM of
  depth r).
- It uses `index_select`, never `x[index]`: 0.3 against 1.6 ms for 2,048 x 1,376 (CPU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.kernels.experts import ExpertPair, Slots
from loramux_runtime.fused.kernels.gated import activate, activate_backward_
from loramux_runtime.fused.kernels.grouped import grouped_add_, grouped_narrow, grouped_outer, grouped_rows

Pairs = tuple[ExpertPair | None, ExpertPair | None, ExpertPair | None]


def _narrow_per_token(x: Tensor, pair: ExpertPair, slots: Slots) -> Tensor:
    """Return s A drop(x) of each slot's expert: x [rows, n_in] -> [N, r]."""
    dropped = x if pair.drop is None else pair.drop.apply(x)
    u = slots.pick(grouped_narrow(dropped, pair.a.flatten(1, 2), slots.job_offs))
    return (u * pair.scale).to(u.dtype)


def _per_slot(base: Tensor, v: Tensor | None, pair: ExpertPair | None, slots: Slots) -> Tensor:
    """Return each slot's row of `base`, plus B v: base [rows, n] -> [N, n]."""
    out = base.index_select(0, slots.tokens)
    if pair is not None and v is not None:
        grouped_add_(out, v, pair.b.flatten(0, 1).transpose(1, 2), slots.offs)
    return out


def _per_slot_backward(grad: Tensor, x: Tensor, d_x: Tensor, v: Tensor, pair: ExpertPair, slots: Slots) -> None:
    """Add the gradients of a gate or up pair, and add to d_x [rows, n_in]."""
    d_v = grouped_narrow(grad, pair.b.flatten(0, 1).transpose(1, 2), slots.offs)
    d_b = grouped_outer(v, grad, slots.offs)
    d_u = slots.spread((d_v * pair.scale).to(d_v.dtype))
    a = pair.a.flatten(1, 2)
    if pair.drop is None:
        dropped = x
        grouped_add_(d_x, d_u, a, slots.job_offs)
    else:
        dropped = pair.drop.apply_and_add(x, grouped_rows(d_u, a, slots.job_offs), d_x)
    pair.add_grads(grouped_outer(d_u, dropped, slots.job_offs).view_as(pair.a), d_b.transpose(1, 2).view_as(pair.b))


class _ExpertFfn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, w: Tensor, slots: Slots, pairs: Pairs, act: str
    ) -> tuple[Tensor, ...]:
        narrow = [None if pair is None else _narrow_per_token(x, pair, slots) for pair in pairs[:2]]
        a = activate(act, _per_slot(gate, narrow[0], pairs[0], slots))
        a *= _per_slot(up, narrow[1], pairs[1], slots)
        factor = w.unsqueeze(1)
        down = pairs[2]
        u = delta = None
        if down is not None:
            dropped = a if down.drop is None else down.drop.at(slots.tokens).apply(a)
            u = grouped_narrow(dropped, down.a.flatten(0, 1), slots.offs)
            v = slots.spread((u * down.scale * factor).to(u.dtype))
            delta = grouped_rows(v, down.b.transpose(2, 3).flatten(1, 2), slots.job_offs)
        a *= factor.to(a.dtype)
        ctx.save_for_backward(x, gate, up, w, *narrow, u)
        ctx.slots, ctx.pairs, ctx.act = slots, pairs, act
        z = slots.to_tokens(a)
        return (z,) if delta is None else (z, delta)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, w, v_gate, v_up, u = ctx.saved_tensors
        slots: Slots = ctx.slots
        pairs: Pairs = ctx.pairs
        g = _per_slot(gate, v_gate, pairs[0], slots)
        h = _per_slot(up, v_up, pairs[1], slots)
        s = activate(ctx.act, g)
        a = s * h
        factor = w.unsqueeze(1)
        d_a = outs[0].index_select(0, slots.tokens)
        d_w = (d_a * a).sum(1).to(w.dtype)
        d_a *= factor.to(d_a.dtype)
        if pairs[2] is not None:
            d_w += _down_backward(outs[1], a, d_a, u, factor, pairs[2], slots)
        del a
        d_g = activate_backward_(ctx.act, h.mul_(d_a), g)
        d_h = s.mul_(d_a)
        del d_a, g, h
        d_x = torch.zeros_like(x)
        if pairs[0] is not None:
            _per_slot_backward(d_g, x, d_x, v_gate, pairs[0], slots)
        d_gate = slots.to_tokens(d_g)
        del d_g
        if pairs[1] is not None:
            _per_slot_backward(d_h, x, d_x, v_up, pairs[1], slots)
        return d_x, d_gate, slots.to_tokens(d_h), d_w, None, None, None


def _down_backward(
    grad: Tensor, a: Tensor, d_a: Tensor, u: Tensor, factor: Tensor, pair: ExpertPair, slots: Slots
) -> Tensor:
    """Add the gradients of the down pair from that of delta [rows, d].

    It adds to d_a [N, f], and returns its part of the gradient of w. It spoils `a`.
    """
    d_v = slots.pick(grouped_narrow(grad, pair.b.transpose(2, 3).flatten(1, 2), slots.job_offs))
    scaled = d_v * pair.scale
    d_u = (scaled * factor).to(u.dtype)
    v = slots.spread((u * pair.scale * factor).to(u.dtype))
    jobs, experts, n_out, rank = pair.b.shape
    d_b = grouped_outer(v, grad, slots.job_offs).view(jobs, experts, rank, n_out).transpose(2, 3)
    wide = pair.a.flatten(0, 1)
    if pair.drop is None:
        dropped = a
        grouped_add_(d_a, d_u, wide, slots.offs)
    else:
        dropped = pair.drop.at(slots.tokens).apply_and_add(a, grouped_rows(d_u, wide, slots.offs), d_a, a)
    pair.add_grads(grouped_outer(d_u, dropped, slots.offs).view_as(pair.a), d_b)
    return (scaled * u).sum(1).to(factor.dtype)


def expert_ffn(
    x: Tensor, gate: Tensor, up: Tensor, w: Tensor, slots: Slots, pairs: Pairs, act: str
) -> tuple[Tensor, Tensor | None]:
    """Return z [rows, f] and delta [rows, d] (or None) of the experts.

    x [rows, d], gate and up [rows, f], w [N] in sorted slots.

    `pairs`: of gate, up and down, None where a projection has no experts of its own.
    """
    outs: tuple[Tensor, ...] = _ExpertFfn.apply(x, gate, up, w, slots, pairs, act)  # type: ignore[no-untyped-call]
    return outs[0], outs[1] if len(outs) > 1 else None
