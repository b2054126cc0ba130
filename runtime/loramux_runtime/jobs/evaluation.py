"""This module scores an adapter on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from loramux_runtime.data import TokenisedRows
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.memory_meter import is_out_of_memory
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch

EVAL_TOKENS: Final = 4096
"""Tokens of held-out rows in one evaluation pass."""


class Evaluation(NamedTuple):
    """An evaluation holds the scores of held-out rows."""

    loss: float
    """Mean cross entropy per learned token."""
    token_accuracy: float
    """Share of learned tokens that were the likeliest."""
    exact_match: float
    """Share of rows in which every learned token was the likeliest.

    These are the rows that greedy decoding answers exactly.
    """


class NoMemoryError(Exception):
    """Means that not even one held-out row can be scored; the text says how long it is."""


def evaluate(
    model: FusedModel, adapter: Adapter, rows: TokenisedRows, give_up: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Score an adapter on rows, without gradients and without dropout.

    Where memory runs out, fewer rows are scored at a time; NoMemoryError where it does for a single
    one. None where `give_up`, which is asked between passes, says so.
    """
    total = 0.0
    right = exact = start = 0
    most_tokens, n_labels, starts = EVAL_TOKENS, rows.n_labels, rows.starts
    while start < len(rows):
        if give_up():
            return None
        end = start + 1
        while end < len(rows) and starts[end + 1] - starts[start] <= most_tokens:
            end += 1
        found = [rows[row] for row in range(start, end)]
        batch = MicroBatch(
            tokens=tuple(tokens for tokens, _ in found),
            labels=tuple(labels for _, labels in found),
            samples=tuple(range(start, end)),
            window_labels=n_labels,
        )
        try:
            score = model.score(adapter, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if end == start + 1:
                tokens = int(starts[end] - starts[start])
                raise NoMemoryError(f"out of memory where one held-out row of {tokens} tokens was scored") from None
            most_tokens = int(starts[end] - starts[start]) // 2
            continue
        total, right, exact = total + score.loss, right + score.right, exact + score.rows_right
        start = end
    return Evaluation(total, right / max(1, n_labels), exact / len(rows))
