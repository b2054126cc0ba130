"""Grouped matrix products: many small GEMMs over contiguous groups of rows, as one call.

`F.grouped_mm` runs forward and backward on CPU and CUDA (torch 2.11 and 2.13) and on CPU gives the bits of a loop over
the groups, so a job's result does not depend on its peers. Float64 (gradcheck) has no kernel and takes that loop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_rows(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Rows of group g times `weight[g]`: x [N, K], weight [G, K, M] -> [N, M].

    `offs` [G] int32: the end of each group's rows, on x's device. Every row must belong to a group (rows past the last
    one are not written); a group may be empty.
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


def grouped_outer(left: Tensor, right: Tensor, offs: Tensor) -> Tensor:
    """Per group, the sum over its rows of outer products: left [N, M], right [N, K] -> [G, M, K]; no rows, zero."""
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
