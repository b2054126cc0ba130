"""This module checks the values that the configurations of all methods have.

There is no torch in here: a jobs file is read without it.
"""

from __future__ import annotations


def check_lora(rank: int, alpha: float, dropout: float) -> None:
    """Raise ValueError on values without meaning."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
