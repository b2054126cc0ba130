"""Counts of decimals are those that people work out by hand."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pandas as pd

from loramux_traces.batches import counted
from loramux_traces.decimals import as_written, steps_of_epochs
from loramux_traces.job import JobSpec


def test_steps_of_epochs_are_those_of_the_decimals_as_written() -> None:
    assert steps_of_epochs(50, 1.1, 11) == 5
    wrong_in_floats = 0
    for rows in range(1, 120, 7):
        for tenths in range(1, 60):
            for batch in (1, 3, 7, 11, 16):
                exact = max(1, -(-rows * tenths // (10 * batch)))
                assert steps_of_epochs(rows, tenths / 10, batch) == exact
                wrong_in_floats += exact != max(1, ceil(rows * (tenths / 10) / batch))
    assert wrong_in_floats > 0
    assert steps_of_epochs(3, 1e-7, 8) == 1
    assert steps_of_epochs(10**12, 1e6, 1) == 10**18


def test_a_trace_has_the_same_steps() -> None:
    def steps(rows: int, epochs: float, batch: int) -> float | None:
        return JobSpec(
            job_id="a", submit_s=0.0, base_model="m", method="lora", batch_size=batch, seq_len=8.0, num_samples=rows, epochs=epochs
        ).steps  # fmt: skip

    assert steps(50, 1.1, 11) == 5.0
    assert steps(100, 1.5, 8) == 19.0
    assert steps(3, 0.001, 8) == 1.0


def test_shares_are_those_of_the_decimals_as_written() -> None:
    assert [as_written(value) for value in (1.1, 0.29, 3.0, 1e-7)] == [
        Fraction(11, 10),
        Fraction(29, 100),
        Fraction(3),
        Fraction(1, 10**7),
    ]
    assert int(as_written(0.29) * 100) == 29 > int(0.29 * 100)


def test_the_jobs_that_warm_a_run_up_are_counted_alike_everywhere() -> None:
    """The figures of a run and its batches leave the same jobs out: 29 of 100, not 28."""
    jobs = pd.DataFrame({"submission_time": range(100), "job_id": [f"j{i:03}" for i in range(100)]})
    assert counted(jobs, 0.29)["job_id"].iloc[0] == "j029"
