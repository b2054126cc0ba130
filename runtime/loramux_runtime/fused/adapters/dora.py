"""This module has DoRA (arXiv 2402.09353) as PEFT computes it.

y = W x + (c - 1) W drop(x) + c s B A drop(x), c = m / |W + s B A|.

The norm is a constant to the gradient (section 4.3 of the paper). It is worked out without forming
W + s B A: |W|^2 + 2 s B . (W A^T) + s^2 (B A A^T) . B, summed per row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loramux_runtime.fused.slab import Slab


def leaf(slab: Slab, key: str) -> Tensor:
    """Return a parameter as a leaf of autograd whose gradient accumulates in the slab's."""
    tensor = slab.param(key).detach().requires_grad_(True)
    tensor.grad = slab.grad(key)
    return tensor


def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return |W + s B A| by row, without a gradient.

    weight [n_out, n_in], a [..., r, n_in], b [..., n_out, r] -> [..., n_out].
    """
    w, a, b = weight.detach().to(a.dtype), a.detach(), b.detach()
    square = torch.linalg.vector_norm(w, dim=1).square()  # w.pow(2) would be as large as the weight
    cross = (b * (w @ a.transpose(-1, -2))).sum(-1)
    own = ((b @ (a @ a.transpose(-1, -2))) * b).sum(-1)
    norms: Tensor = (square + 2 * scale * cross + scale * scale * own).clamp_min(0).sqrt()
    return norms


def decompose(base: Tensor, dropped_base: Tensor, low_rank: Tensor, ratio: Tensor) -> Tensor:
    """Return what DoRA adds to `base`.

    `ratio` is m / norm, broadcast over rows.
    """
    c = ratio.to(torch.promote_types(base.dtype, ratio.dtype))
    return ((c - 1) * dropped_base + c * low_rank).to(base.dtype)
