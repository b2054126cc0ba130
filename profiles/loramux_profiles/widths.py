"""This module says how wide the runtime stores low-rank pairs.

Grouped GEMMs and cost models both go by it.
"""

from __future__ import annotations

from typing import Final

ROUNDING: Final = 8
"""Tokens are rounded up to a multiple of this (grouped GEMMs want 16-byte strides)."""
RANK_BUCKETS: Final = (8, 16, 32, 64, 128)


def rank_bucket(rank: int) -> int:
    """Return the width that a LoRA of this rank is stored with.

    It is the next of 8, 16, 32, 64, 128, then of multiples of 64. It depends only on the job's own
    rank, never on its peers', so that its bits do not depend on them; jobs of one bucket share a
    grouped GEMM.
    """
    for width in RANK_BUCKETS:
        if rank <= width:
            return width
    return -(-rank // 64) * 64


def multiple_of_8(width: int) -> int:
    """Return the smallest multiple of 8 that holds `width` (16-byte strides in bf16)."""
    return -(-width // 8) * 8


def experts_by_layer(experts: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Return the number of experts of every layer.

    There may be one number per group of layers (MoLA). Raises ValueError for more groups than
    layers.
    """
    groups = (experts,) if isinstance(experts, int) else experts
    if len(groups) > layers:
        raise ValueError(f"{len(groups)} groups of experts for {layers} layers")
    return tuple(groups[layer * len(groups) // layers] for layer in range(layers))
