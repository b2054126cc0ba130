"""scipy's HiGHS solvers, bounded by work and not by time (the same on every machine), and silent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from loramux_traces.arrays import Floats


@contextmanager
def _silence() -> Iterator[None]:
    """Send file descriptor 1 to nowhere: HiGHS 1.12 writes a debugging line there even when told to be quiet.

    https://github.com/ERGO-Code/HiGHS/issues/2783. stdout carries results (`--json`), so not a byte
    may reach it.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no stdout at all: nothing to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


class Limits:
    """Rows of `sum of value * x[column] <= bound`, few columns a row."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._bounds: list[float] = []

    def add(self, terms: Sequence[tuple[int, float]], bound: float) -> None:
        """One more row, of (column, value) terms."""
        self._rows.extend([len(self._bounds)] * len(terms))
        self._columns.extend([column for column, _ in terms])
        self._values.extend([value for _, value in terms])
        self._bounds.append(bound)

    def matrix(self, n_columns: int) -> tuple[Any, Floats]:
        """Sparse matrix and bounds."""
        from scipy.sparse import csr_array  # 0.1 s to import: only those who solve pay for it

        shape = (len(self._bounds), n_columns)
        return csr_array((self._values, (self._rows, self._columns)), shape=shape), np.array(self._bounds)


def zero_one_program(cost: Floats, limits: Limits, nodes: int) -> Floats | None:
    """argmin cost x, rows x <= bounds, x in {0, 1}, after at most `nodes` branches; None where none was found."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows, bounds = limits.matrix(len(cost))
    with _silence():
        found = milp(
            cost,
            integrality=np.ones(len(cost), dtype=np.int64),
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(rows, -np.inf, bounds),
            options={"node_limit": nodes, "mip_rel_gap": 0.0},
        )
    return None if found.x is None else np.asarray(found.x, dtype=float).round()
