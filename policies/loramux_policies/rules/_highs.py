"""This module runs scipy's HiGHS solvers silently and bounds them by work, not by time.

A bound on work gives the same result on every machine.
"""

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
    """Send file descriptor 1 to the null device while a solver runs.

    HiGHS 1.12 writes a debugging line there even when told to be quiet:
    https://github.com/ERGO-Code/HiGHS/issues/2783. stdout carries results (`--json`), so not a byte
    may reach it.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no stdout, so nothing has to be kept clean
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
    """Collects the rows `sum of value * x[column] <= bound` of a program.

    A row has few columns.
    """

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []
        self._bounds: list[float] = []

    def add(self, terms: Sequence[tuple[int, float]], bound: float) -> None:
        """Add one more row, given by its (column, value) terms and its bound."""
        self._rows.extend([len(self._bounds)] * len(terms))
        self._columns.extend([column for column, _ in terms])
        self._values.extend([value for _, value in terms])
        self._bounds.append(bound)

    def matrix(self, n_columns: int) -> tuple[Any, Floats]:
        """Return the sparse matrix of the rows, and the array of their bounds."""
        from scipy.sparse import csr_array  # the import takes 0.1 s: only those who solve pay it

        shape = (len(self._bounds), n_columns)
        return csr_array((self._values, (self._rows, self._columns)), shape=shape), np.array(self._bounds)


def zero_one_program(cost: Floats, limits: Limits, nodes: int) -> Floats | None:
    """Return the x in {0, 1} that minimises cost x under rows x <= bounds.

    The search ends after at most `nodes` branches. Returns None where it found no solution.
    """
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
