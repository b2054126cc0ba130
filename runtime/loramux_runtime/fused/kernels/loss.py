"""This is the cross entropy of packed rows against a large vocabulary, chunk by chunk.

All logits are never in memory at once: an unchunked loss costs about 12 bytes per token and
vocabulary entry. The gradient with respect to the hidden states is computed with the loss (the idea
of Liger and Cut Cross-Entropy), so the backward pass only scales it. Chunks lie inside one job, so
that neither its loss nor its bits depend on its peers; only rows that have a label are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ROWS = 512
"""Rows of logits held at once: 512 x 128k x 4 B = 256 MiB for Llama-3's vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """Loss rows say which rows of the step have a label.

    `index` and `target` are [N] int64 on the device, jobs in the step's order.
    """

    index: Tensor
    target: Tensor
    bounds: tuple[int, ...]
    """The end of each job's rows in `index`, on the host."""
    weights: tuple[float, ...]
    """Per job: what the sum of its rows' losses is multiplied by.

    It is 1 / labels of the accumulation window.
    """


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, rows: LossRows, chunk: int) -> Tensor:
        losses = []
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        grad = torch.empty(rows.index.shape[0], hidden.shape[1], dtype=hidden.dtype, device=hidden.device)
        start = 0
        for end, weight in zip(rows.bounds, rows.weights, strict=True):
            total = torch.zeros((), dtype=wide, device=hidden.device)
            for a in range(start, end, chunk):
                b = min(end, a + chunk)
                x = hidden.index_select(0, rows.index[a:b])
                logits = torch.nn.functional.linear(x, head, bias).to(wide)
                target = rows.target[a:b].unsqueeze(1)
                # One exponential per logit, in place (logsumexp and then the softmax take two, and
                # a copy)
                logits -= logits.amax(1, keepdim=True)
                own = logits.gather(1, target)
                norm = logits.exp_().sum(1, keepdim=True)
                total = total + (norm.log() - own).sum()
                logits *= weight / norm
                logits.scatter_add_(1, target, torch.full_like(norm, -weight))
                torch.mm(logits.to(x.dtype), head, out=grad[a:b])
                del logits  # otherwise the next chunk's are made beside them
            losses.append(total * weight)
            start = end
        ctx.save_for_backward(grad)
        ctx.rows, ctx.shape = rows, hidden.shape
        return torch.stack(losses)

    @staticmethod
    def backward(ctx: Any, *outs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        rows: LossRows = ctx.rows
        full = grad.new_zeros(ctx.shape)
        scales = torch.cat([outs[0][j : j + 1].expand(b - a) for j, (a, b) in enumerate(_ranges(rows.bounds))]).to(
            grad.dtype
        )
        full.index_copy_(0, rows.index, grad * scales.unsqueeze(1))
        return full, None, None, None, None


def _ranges(bounds: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip((0, *bounds[:-1]), bounds, strict=True))


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, bias: Tensor | None, rows: LossRows, *, chunk: int = CHUNK_ROWS
) -> Tensor:
    """Return the weighted cross-entropy sum of each job, [jobs] in fp32.

    hidden [T, d], head [V, d] (frozen). For fp64 hidden states it is in fp64.
    """
    result: Tensor = _ChunkedLoss.apply(hidden, head, bias, rows, chunk)  # type: ignore[no-untyped-call]
    return result
