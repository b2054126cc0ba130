"""Grouped matrix products are many small GEMMs over contiguous groups of rows, as one call.

`F.grouped_mm` runs forward and backward on CPU and CUDA (torch 2.11 and 2.13), and on CPU gives the
bits of a loop over the groups, so a job's result does not depend on its peers. One group is a plain
GEMM. Float64 (gradcheck) has no kernel and takes a loop.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_NARROW: Final = 16
"""Results narrower than this are computed transposed on CPU.

On one core MKL reaches 14 to 35 GFLOP/s 8 columns wide, but 55 to 60 8 rows high (16 wide: 77).
"""


def grouped_rows(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Multiply the rows of group g by `weight[g]`: x [N, K], weight [G, K, M] -> [N, M].

    `offs` [G] int32: the end of each group's rows, on x's device. Every row must belong to a group
    (rows past the last one are not written); a group may be empty.
    """
    if weight.shape[0] == 1:
        return x @ weight[0]
    if x.dtype != torch.float64:
        return F.grouped_mm(x, weight, offs=offs)
    out = x.new_empty(x.shape[0], weight.shape[2])
    start = 0
    for g, end in enumerate(offs.tolist()):
        torch.mm(x[start:end], weight[g], out=out[start:end])
        start = end
    return out


def grouped_narrow(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Multiply the rows of group g by `weight[g]` transposed, with r small.

    x [N, K], weight [G, r, K] -> [N, r]. The result of one group may lie in memory transposed.
    """
    if x.device.type == "cpu" and weight.shape[1] < _NARROW and x.dtype != torch.float64:
        if weight.shape[0] == 1:
            return (weight[0] @ x.t()).t()
        # Copied, because the strides of the transposed result are the number of rows, which nothing
        # rounds
        return F.grouped_mm(weight, x.t(), offs=offs).t().contiguous()
    return grouped_rows(x, weight.transpose(1, 2), offs)


def grouped_add_(y: Tensor, x: Tensor, weight: Tensor, offs: Tensor) -> None:
    """Add the rows of group g times `weight[g]` to y [N, M], in place.

    x [N, K], weight [G, K, M]. One group is added inside its GEMM.
    """
    if weight.shape[0] == 1:
        y.addmm_(x, weight[0])
    else:
        y += grouped_rows(x, weight, offs)


def grouped_outer(left: Tensor, right: Tensor, offs: Tensor) -> Tensor:
    """Return for each group the sum over its rows of outer products.

    left [N, M], right [N, K] -> [G, M, K]. A group without rows gives zero.

    Have the narrow side left: on CPU a result 8 rows high takes a quarter of the time of one 8
    columns wide.
    """
    if offs.shape[0] == 1:
        return (left.t() @ right).unsqueeze(0)
    if left.dtype != torch.float64:
        return F.grouped_mm(left.t(), right, offs=offs)
    out = left.new_zeros(offs.shape[0], left.shape[1], right.shape[1])
    start = 0
    for g, end in enumerate(offs.tolist()):
        torch.mm(left[start:end].t(), right[start:end], out=out[g])
        start = end
    return out
