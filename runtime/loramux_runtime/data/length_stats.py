"""This module says how long a job's rows are, which is what a scheduler admits it by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loramux_runtime.data.load import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStats:
    """Holds statistics of row lengths in tokens.

    `p99` is the shortest length that at least 99% of the rows do not exceed.
    """

    rows: int
    mean: float
    p50: int
    p95: int
    p99: int
    p999: int
    max: int


def length_stats(rows: Rows) -> LengthStats:
    """Return statistics of the rows' lengths.

    Raises ValueError for no rows.
    """
    lengths = rows.lengths
    if not len(lengths):
        raise ValueError("no rows, no lengths")
    # Take a length that occurs, never one interpolated between two: memory is reserved for it.
    p50, p95, p99, p999 = np.quantile(lengths, (0.5, 0.95, 0.99, 0.999), method="inverted_cdf").tolist()
    return LengthStats(
        rows=len(lengths),
        mean=float(lengths.mean()),
        p50=int(p50),
        p95=int(p95),
        p99=int(p99),
        p999=int(p999),
        max=int(lengths.max()),
    )
