"""This module says which labels the model would have predicted itself."""

from __future__ import annotations

import torch
from torch import Tensor

from loramux_runtime.fused.kernels.loss import CHUNK_ROWS, LossRows


def predicted(hidden: Tensor, head: Tensor, bias: Tensor | None, rows: LossRows) -> Tensor:
    """Return whether the likeliest token is the label, [N] bool in the order of `rows.index`.

    Logits are made in chunks.
    """
    found = [torch.zeros(0, dtype=torch.bool, device=hidden.device)]
    for a in range(0, rows.index.shape[0], CHUNK_ROWS):
        x = hidden[rows.index[a : a + CHUNK_ROWS]]
        logits = torch.nn.functional.linear(x, head, bias)
        found.append(logits.argmax(1) == rows.target[a : a + CHUNK_ROWS])
    return torch.cat(found)
