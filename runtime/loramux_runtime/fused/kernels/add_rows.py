"""This module adds to some rows of a packed tensor.

It makes no full-size gradient for each addition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, starts: Sequence[int], *values: Tensor) -> Tensor:
        ctx.spans = [(start, start + len(value)) for start, value in zip(starts, values, strict=True)]
        ctx.mark_dirty(y)
        for (a, b), value in zip(ctx.spans, values, strict=True):
            y[a:b] += value
        return y

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outs
        return grad, None, *(grad[a:b] for a, b in ctx.spans)


def add_rows(y: Tensor, starts: Sequence[int], values: Sequence[Tensor]) -> Tensor:
    """Add values[i] [n, m] to the rows of y [N, m] from starts[i] on, in place."""
    if not values:
        return y
    result: Tensor = _AddRows.apply(y, tuple(starts), *values)  # type: ignore[no-untyped-call]
    return result
