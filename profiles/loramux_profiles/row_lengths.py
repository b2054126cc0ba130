"""This module says which lengths a job's rows have.

It is one draw for a simulated run and for a real one of the same trace and seed. Row i of a job is
row i % rows of micro-batch i // rows, and micro-batches are drawn in blocks. So the lengths follow
from (seed, job id, distribution, rows of a micro-batch): whoever knows these four has the same
rows, wherever it starts.
"""

from __future__ import annotations

from typing import Final

from loramux_profiles.length_table import LengthDist
from loramux_profiles.streams import generator
from loramux_profiles.work import ADMISSION_QUANTILE
from loramux_traces.arrays import Ints

BLOCK: Final = 512
"""Micro-batches drawn at once.

One draw a step cost 14 us, in blocks 0.3 us (measured with 4 rows).
"""
PURPOSE: Final = "lengths"
"""Name of the random stream."""


def longest_admitted(lengths: LengthDist, rows: int) -> int:
    """Return ADMISSION_QUANTILE of the longest row of a micro-batch of `rows`, in tokens.

    No row of the job is longer.
    """
    return int(lengths.quantile(ADMISSION_QUANTILE ** (1 / rows)))


def draw_block(seed: int, job_id: str, lengths: LengthDist, rows: int, block: int) -> Ints:
    """Return [BLOCK, rows] lengths of micro-batches block * BLOCK, ... of a job.

    `lengths` is the distribution cut at what is admitted.
    """
    return lengths.draw(generator(seed, job_id, PURPOSE, block), (BLOCK, rows))
