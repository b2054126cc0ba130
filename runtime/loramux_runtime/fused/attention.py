"""This module has causal attention inside each sequence of a packed step.

It is registered with transformers under one name.

It uses slices, never a block-diagonal mask: 0 * NaN would carry one job's NaN to its neighbours,
and the dense mask is T x T.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from loramux_runtime.fused.context import current_step
from loramux_runtime.fused.packing import StepLayout

NAME: Final = "loramux_packed"


def _slices(q: Tensor, k: Tensor, v: Tensor, layout: StepLayout, scale: float | None, window: int | None) -> Tensor:
    """Attend within one sequence at a time, which gives the bits of separate runs.

    q [1, H, T, hd], k and v [1, Hkv, T, hd] -> [1, T, H, hd].
    """
    # Split, not sliced: gradients of slices would be filled up with zeros to full size, one by one
    rest = layout.width - layout.n_tokens
    sizes = [*(b - a for a, b in layout.sequences), rest]
    parts = []
    grouped = q.shape[1] != k.shape[1]
    pieces = zip(*(torch.split(x, sizes, 2) for x in (q, k, v)), strict=True)
    for size, (one_q, one_k, one_v) in zip(sizes[:-1], pieces, strict=False):
        mask = None
        if window is not None and size > window:
            at = torch.arange(size, device=q.device)
            distance = at.unsqueeze(1) - at
            mask = (distance >= 0) & (distance < window)
        part = F.scaled_dot_product_attention(
            one_q, one_k, one_v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        parts.append(part.transpose(1, 2))
    if rest:
        parts.append(q.new_zeros(1, rest, q.shape[1], v.shape[3]))
    return torch.cat(parts, 1)


def _varlen(q: Tensor, k: Tensor, v: Tensor, layout: StepLayout, scale: float | None, window: int | None) -> Tensor:
    """Attend through torch's variable-length flash attention (CUDA, 16-bit).

    Shapes are as in `_slices`. Rounding rows come out as zero.
    """
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn  # its signature differs between torch 2.11 and 2.13

    heads = q.shape[1]
    repeat = heads // k.shape[1]
    if repeat > 1:  # torch 2.11 has no enable_gqa
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    n = layout.n_tokens
    q, k, v = (x[0, :, :n].transpose(0, 1).contiguous() for x in (q, k, v))
    options: dict[str, Any] = {"scale": scale} if scale is not None else {}
    left = -1 if window is None else window - 1
    try:
        out = varlen_attn(
            q,
            k,
            v,
            layout.cu_seqlens,
            layout.cu_seqlens,
            layout.longest,
            layout.longest,
            window_size=(left, 0),
            **options,
        )
    except TypeError:  # torch 2.11: is_causal instead of a window
        if window is not None:
            raise
        out = varlen_attn(
            q, k, v, layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest, is_causal=True, **options
        )
    assert isinstance(out, Tensor)
    return F.pad(out, (0, 0, 0, 0, 0, layout.width - n)).unsqueeze(0)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention function does: [1, H, T, hd] -> [1, T, H, hd]."""
    if attention_mask is not None:
        raise ValueError("packed attention takes its sequences from the step, not from a mask")
    if dropout:
        raise ValueError("attention dropout of the base model must be 0: it would depend on who shares the batch")
    layout = current_step().layout
    flash = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = _varlen if flash else _slices
    return attend(query, key, value, layout, scaling, sliding_window), None


AttentionInterface.register(NAME, packed_attention)
