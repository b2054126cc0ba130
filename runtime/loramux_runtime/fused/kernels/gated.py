"""This operation computes act(gate) * up and keeps only its two inputs.

The backward pass needs no more; autograd would keep act(gate) as well.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: Final = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new")
Slices = tuple[tuple[int, int], ...]


def activate(name: str, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply an activation by its Hugging Face name (`hidden_act`); `out` is filled if given."""
    ops: Any = torch.ops.aten
    result: Tensor
    if name == "silu":
        result = F.silu(x) if out is None else ops.silu.out(x, out=out)
    else:
        kind = "none" if name == "gelu" else "tanh"
        result = F.gelu(x, approximate=kind) if out is None else ops.gelu.out(x, approximate=kind, out=out)
    return result


def activate_backward_(name: str, grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of `activate` at x, in the place of `grad`."""
    ops: Any = torch.ops.aten
    back: Tensor
    if name == "silu":
        back = ops.silu_backward.grad_input(grad, x, grad_input=grad)
    else:
        kind = "none" if name == "gelu" else "tanh"
        back = ops.gelu_backward.grad_input(grad, x, approximate=kind, grad_input=grad)
    return back


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: str, slices: Slices) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act, ctx.slices = act, slices
        out = torch.empty_like(up)
        for a, b in slices:
            activate(act, gate[a:b], out[a:b]).mul_(up[a:b])
        for a, b in _gaps(slices, len(out)):
            out[a:b] = 0
        return out

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        for a, b in ctx.slices:
            # In place: this is where a step's memory peaks, and a temporary is as wide as the FFN
            activate(ctx.act, gate[a:b], d_up[a:b]).mul_(grad[a:b])
            torch.mul(grad[a:b], up[a:b], out=d_gate[a:b])
            activate_backward_(ctx.act, d_gate[a:b], gate[a:b])
        for a, b in _gaps(ctx.slices, len(gate)):
            d_gate[a:b] = 0
            d_up[a:b] = 0
        return d_gate, d_up, None, None


def _gaps(slices: Slices, rows: int) -> list[tuple[int, int]]:
    ends = [0, *(b for _, b in slices)]
    starts = [*(a for a, _ in slices), rows]
    return [(a, b) for a, b in zip(ends, starts, strict=True) if b > a]


def gated(gate: Tensor, up: Tensor, act: str, slices: Slices) -> Tensor:
    """Return act(gate) * up, where all are [N, f].

    `slices`: rows to compute, ascending; the others are zero and get no gradient.

    torch computes an activation's last few elements (fewer than a vector) by another routine, so
    the bits of a row can depend on how many rows stand before it: in exact mode a slice is one
    job's own. (Seen: 9 rows of 688 alone, padded to 16, and inside a mixed step differed by 4e-9.)
    """
    result: Tensor = _Gated.apply(gate, up, act, slices)  # type: ignore[no-untyped-call]
    return result
