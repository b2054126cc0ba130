"""This operation is a frozen linear with the low-rank updates of every job in the step.

It has a forward and a backward pass of its own. The linear is y = W x + b, and each group's rows
get

y += (s * w * (A drop(x))) B

with w the routing weights of a plug-in mixture (one LoRA of rank experts * r: cost and memory do
not depend on the routing) or 1. Saved for the backward pass are x (shared with whoever else keeps
it) and A x; dropped inputs are made again from their key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loramux_runtime.fused.kernels.dropout import DropKey
from loramux_runtime.fused.kernels.grouped import grouped_add_, grouped_narrow, grouped_outer, grouped_rows

Slices = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A frozen linear has a weight [n_out, n_in] and a bias [n_out] or None.

    `slices`: rows that one GEMM may take at a time. In exact mode a slice is one job's rows: over
    the rows of all jobs, GEMM changes the bits of jobs of up to 11 tokens (5 to 8% slower, CPU).
    """

    weight: Tensor
    bias: Tensor | None
    slices: Slices

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear: x [T, n_in] -> [T, n_out].

        Rows outside the slices (rounding) are zero.
        """
        if len(self.slices) == 1 and self.slices[0] == (0, x.shape[0]):
            return torch.nn.functional.linear(x, self.weight, self.bias)
        out = x.new_empty(x.shape[0], self.weight.shape[0])
        for a, b in self.slices:
            if self.bias is None:
                torch.mm(x[a:b], self.weight.t(), out=out[a:b])
            else:
                torch.addmm(self.bias, x[a:b], self.weight.t(), out=out[a:b])
        out[self.slices[-1][1] :] = 0
        return out

    def backward(self, grad: Tensor) -> Tensor:
        """Return the input's gradient: grad [T, n_out] -> [T, n_in]."""
        if len(self.slices) == 1 and self.slices[0] == (0, grad.shape[0]):
            return grad @ self.weight
        out = grad.new_empty(grad.shape[0], self.weight.shape[1])
        for a, b in self.slices:
            torch.mm(grad[a:b], self.weight, out=out[a:b])
        out[self.slices[-1][1] :] = 0
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """This object is the update of one group of jobs on one linear."""

    start: int
    end: int
    offs: Tensor
    """[jobs] int32: end of each job's rows within the group."""
    a: Tensor
    """[jobs, width, n_in], width = rank padded, or experts * rank padded."""
    b: Tensor
    """[jobs, n_out, width]."""
    scale: Tensor
    """[rows, 1] or [1, 1]: alpha / r, times 1 / (1 - p) where inputs are dropped."""
    drop: DropKey | None
    rank: int
    """Rank of one expert.

    With routing weights, columns e * rank to (e + 1) * rank belong to expert e.
    """
    add_grads: Callable[[Tensor, Tensor], None]
    """Takes the gradients of `a` and `b`."""

    def inputs(self, x: Tensor) -> Tensor:
        rows = x[self.start : self.end]
        return rows if self.drop is None else self.drop.apply(rows)

    def scaled(self, narrow: Tensor, weights: Tensor | None) -> Tensor:
        """Multiply [rows, width] by the scale and each expert's weight."""
        if weights is None:
            return (narrow * self.scale).to(narrow.dtype)
        factor = (weights * self.scale).unsqueeze(2)
        used = weights.shape[1] * self.rank
        out = torch.empty_like(narrow, memory_format=torch.contiguous_format)
        out[:, used:] = 0
        torch.mul(self._by_expert(narrow[:, :used]), factor, out=self._by_expert(out[:, :used]))
        return out

    def weight_grad(self, d_v: Tensor, u: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient of the routing weights [rows, experts]."""
        product = (d_v.to(weights.dtype) * u)[:, : weights.shape[1] * self.rank]
        return self._by_expert(product).sum(2) * self.scale

    def _by_expert(self, columns: Tensor) -> Tensor:
        return columns.view(len(columns), -1, self.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source is what an input can be made from again.

    It is kept for the backward pass in the input's place.
    """

    tensors: tuple[Tensor, ...]
    make: Callable[..., Tensor]


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        anchor: Tensor,
        frozen: Frozen | None,
        updates: Sequence[LowRank],
        source: Source | None,
        *weights: Tensor | None,
    ) -> Tensor:
        y = frozen.forward(x) if frozen is not None else x.new_zeros(x.shape[0], updates[0].b.shape[1])
        narrow = []
        for update, w in zip(updates, weights, strict=True):
            u = grouped_narrow(update.inputs(x), update.a, update.offs)
            grouped_add_(y[update.start : update.end], update.scaled(u, w), update.b.transpose(1, 2), update.offs)
            narrow.append(u)
        kept = (x,) if source is None else tuple(tensor.detach() for tensor in source.tensors)
        kept = kept if updates else ()  # only the gradients of updates need the input
        ctx.save_for_backward(*narrow, *weights, *kept)
        ctx.frozen, ctx.updates, ctx.make, ctx.shape = frozen, updates, source and source.make, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        updates: Sequence[LowRank] = ctx.updates
        n = len(updates)
        saved = ctx.saved_tensors
        narrow, weights, kept = saved[:n], saved[n : 2 * n], saved[2 * n :]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad.new_zeros(ctx.shape) if ctx.frozen is None else ctx.frozen.backward(grad)
        if not updates:
            return d_x, None, None, None, None
        x = kept[0] if ctx.make is None else ctx.make(*kept)
        d_weights: list[Tensor | None] = []
        for update, u, w in zip(updates, narrow, weights, strict=True):
            rows = slice(update.start, update.end)
            g = grad[rows]
            d_v = grouped_narrow(g, update.b.transpose(1, 2), update.offs)
            d_b = grouped_outer(update.scaled(u, w), g, update.offs).transpose(1, 2)
            d_u = update.scaled(d_v, w)
            if d_x is None:
                dropped = update.inputs(x)
            elif update.drop is None:
                dropped = x[rows]
                grouped_add_(d_x[rows], d_u, update.a, update.offs)
            else:
                own = None if ctx.make is None else x[rows]  # made here: it may be overwritten
                back = grouped_rows(d_u, update.a, update.offs)
                dropped = update.drop.apply_and_add(x[rows], back, d_x[rows], own)
                del back
            update.add_grads(grouped_outer(d_u, dropped, update.offs), d_b)
            d_weights.append(None if w is None else update.weight_grad(d_v, u, w))
            del dropped, d_v, d_u, d_b  # otherwise the next group's are made beside them
        return (d_x, None, None, None, None, *d_weights)


def adapted_linear(
    x: Tensor,
    anchor: Tensor,
    frozen: Frozen | None,
    updates: Sequence[LowRank],
    weights: Sequence[Tensor | None],
    source: Source | None = None,
) -> Tensor:
    """Apply a frozen linear and the updates: x [T, n_in] -> [T, n_out].

    Parameter gradients go to `add_grads`, not through autograd.

    `anchor` is any tensor that requires a gradient: it has the backward pass come here even where x
    needs none. `frozen`: None for the updates alone. `weights`: for each update its routing weights
    [rows, experts] (differentiable) or None. `source`: keep this instead of x.
    """
    result: Tensor = _AdaptedLinear.apply(x, anchor, frozen, updates, source, *weights)  # type: ignore[no-untyped-call]
    return result
