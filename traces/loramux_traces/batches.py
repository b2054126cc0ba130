"""Split the jobs of one run into batches, so that an interval can be told from a single run.

Jobs near in time wait behind the same others, so that single jobs are no independent samples. Means
of long batches nearly are (the method of batch means; Law, Simulation Modeling and Analysis, 5th
edition 2015, section 9.5.3; few long batches: Schmeiser, Operations Research 30(3), 1982).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from loramux_traces.arrays import Floats
from loramux_traces.decimals import as_written
from loramux_traces.results import COMPLETED

BATCHES: Final = 5
"""Batches of one run.

Measured on M/M/1 queues (300 runs each; share of 95% intervals that held the mean of the
turnarounds): 1,000 jobs at load .5, .7, .9: 93%, 90%, 75% with 5 batches, 91%, 87%, 66% with 10,
and 89%, 79%, 45% with a bootstrap of blocks of sqrt(n) jobs. 200 jobs: 89%, 79%, 74% with 5.
"""
FEWEST_JOBS: Final = 20
"""Completed jobs below which there are no batches."""
#: Column of jobs.csv -> the summary's figure that is its mean.
BATCHED: Final = {"turnaround_time": "turnaround_s", "waiting_time": "waiting_s", "stretch": "stretch"}


def counted(jobs: pd.DataFrame, warmup: float = 0.0) -> pd.DataFrame:
    """Return the jobs in order of submission, without the share that was to warm the run up."""
    ordered = jobs.sort_values(["submission_time", "job_id"], kind="stable")
    return ordered.iloc[int(as_written(warmup) * len(ordered)) :]


def batch_means(values: Floats) -> Floats:
    """Return the means of BATCHES equal parts of values in order of submission; NaN is left out.

    The result is empty where there are too few values for that.
    """
    none: Floats = np.zeros(0)
    parts = [part[np.isfinite(part)] for part in np.array_split(values, BATCHES)]
    if sum(map(len, parts)) < FEWEST_JOBS or not all(map(len, parts)):
        return none
    means: Floats = np.array([part.mean() for part in parts])
    return means


def batch_columns(jobs: pd.DataFrame, warmup: float = 0.0) -> dict[str, str]:
    """Return the batch means of a run as columns of results.csv, `turnaround_batches_s` and so on.

    Each is a text of BATCHES numbers with a blank between them; empty where there are too few jobs.
    """
    rows = counted(jobs, warmup)
    done = (rows["final_state"] == COMPLETED).to_numpy()
    found = {}
    for column, figure in BATCHED.items():
        means = batch_means(np.where(done, rows[column].to_numpy(dtype=np.float64), np.nan))
        found[batch_column(figure)] = " ".join(f"{value:.10g}" for value in means)
    return found


def batch_column(figure: str) -> str:
    """Return the name of the column: the unit stays last."""
    return f"{figure[:-2]}_batches_s" if figure.endswith("_s") else f"{figure}_batches"


def read_batches(text: object) -> Floats:
    """Return the numbers of such a text; none where it is no such text."""
    none: Floats = np.zeros(0)
    try:
        values: Floats = np.array([float(word) for word in str(text).split()])
    except ValueError:
        return none
    return values if len(values) == BATCHES and np.isfinite(values).all() else none
