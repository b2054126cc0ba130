"""Metrics, intervals, agreement and step functions against values worked out by hand.

Or by brute force.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_analysis.agreement import kendall_tau, ks_distance, mape
from loramux_analysis.intervals import change_over_jobs, change_over_seeds, over_jobs, over_seeds
from loramux_analysis.metrics import contention, fairness_figures, finish_time_fairness, jain_index, littles_law
from loramux_analysis.series import assign_lanes, stays, step_average
from loramux_traces.results import COMPLETED
from loramux_traces.runfolder import Run


def _jobs(rows: list[tuple[float, float, float, int]]) -> pd.DataFrame:
    """(submission, finish, solo, num_gpus) rows; a NaN finish is a job that never ran."""
    table = pd.DataFrame(rows, columns=["submission_time", "finish_time", "solo_time", "num_gpus"])
    ran = table["finish_time"].notna()
    return table.assign(
        starting_time=table["submission_time"].where(ran),
        turnaround_time=table["finish_time"] - table["submission_time"],
        stretch=(table["finish_time"] - table["submission_time"]) / table["solo_time"],
        final_state=np.where(ran, COMPLETED, "UNSCHEDULABLE"),
    )


def test_contention_and_rho_by_hand() -> None:
    # Job 0 lives [0, 10], job 1 [0, 20], job 2 [10, 20] on one device: each sees two jobs all its
    # life.
    jobs = _jobs([(0, 10, 5, 1), (0, 20, 10, 1), (10, 20, 10, 1), (3, np.nan, 1, 1)])
    np.testing.assert_allclose(contention(jobs, 1), [2, 2, 2, np.nan])
    # never below 1: a job alone uses one device
    np.testing.assert_allclose(contention(jobs, 4), [1, 1, 1, np.nan])
    np.testing.assert_allclose(finish_time_fairness(jobs, 1), [1.0, 1.0, 0.5, np.nan])
    figures = fairness_figures(jobs, 1)
    assert figures["fairness_max"] == pytest.approx(1.0)
    assert figures["fairness_mean"] == pytest.approx(2.5 / 3)
    # A gang counts once for each device it asks for.
    np.testing.assert_allclose(contention(_jobs([(0, 10, 5, 4)]), 2), [2.0])


def test_rho_of_nothing() -> None:
    empty = _jobs([])
    assert fairness_figures(empty, 1) == dict.fromkeys(
        ["fairness_mean", "fairness_p95", "fairness_max", "jain_stretch"]
    )
    # no life, no division by zero
    np.testing.assert_array_equal(contention(_jobs([(5, 5, 1, 1)]), 1), [1.0])


def test_jain() -> None:
    assert jain_index(np.array([3.0, 3.0, 3.0])) == pytest.approx(1)
    assert jain_index(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert jain_index(np.zeros(0)) is None


def test_littles_law_holds_between_the_two_records(run_set: object, big_run: Run) -> None:
    checks = littles_law(big_run)
    assert [check.what for check in checks] == ["queue", "devices"]
    assert max(check.gap for check in checks) < 1e-9
    broken = big_run.jobs.assign(execution_time=big_run.jobs["execution_time"] * 1.01)
    wrong = littles_law(Run(big_run.path, big_run.manifest, big_run.summary, broken))
    assert wrong[1].gap > 0.009


def test_intervals_at_their_edges() -> None:
    assert over_seeds(np.zeros(0)).n == 0
    assert not over_seeds(np.array([1.0])).known
    three = over_seeds(np.array([1.0, 2.0, 6.0]))
    assert (three.low, three.mean, three.high) == (1.0, 3.0, 6.0)  # all that three values can say
    assert over_seeds(np.array([2.0, 2.0])).low == 2.0
    assert over_seeds(np.array([1.0, np.nan, 3.0])).n == 2
    assert not over_jobs(np.ones(19)).known
    assert over_jobs(np.arange(400.0)).over == "jobs"
    assert over_seeds(np.arange(9.0)) == over_seeds(np.arange(9.0))  # seeded


def test_intervals_cover() -> None:
    """95% intervals over 8 seeds hold the true mean in 90% to 99% of 300 trials.

    Plain percentiles: about 88%.
    """
    rng = np.random.default_rng(1)
    found = [over_seeds(rng.normal(10, 2, 8)) for _ in range(300)]
    assert 0.90 <= np.mean([i.low <= 10 <= i.high for i in found]) <= 0.99


def test_block_intervals_cover_dependent_jobs() -> None:
    """An AR(1) series with correlation 0.8, like waiting in a queue.

    Single-job draws would cover about 50%.
    """
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(100):
        noise = rng.normal(0, 1, 1100)
        x = np.zeros(1100)
        for i in range(1, 1100):
            x[i] = 0.8 * x[i - 1] + noise[i]
        found = over_jobs(x[100:])
        hits += found.low <= 0 <= found.high
    assert hits >= 85


def test_pairing_cancels_common_luck() -> None:
    luck = np.random.default_rng(3).lognormal(3, 1, 10)
    change = change_over_seeds(0.9 * luck, luck)
    assert change.mean == pytest.approx(-0.1)
    assert change.high - change.low < 1e-12
    assert over_seeds(luck).high - over_seeds(luck).low > 0.5 * luck.mean()
    assert change_over_seeds(np.ones(3), np.zeros(3)).n == 3
    assert not change_over_seeds(np.ones(3), np.zeros(3)).known
    job_luck = np.random.default_rng(4).lognormal(3, 1, 300)
    lowest = change_over_jobs(np.full(300, 1e-9), job_luck).low
    assert -1 <= lowest < -0.999  # a change is never below -100%


def test_agreement() -> None:
    a, b = np.array([1.1, 1.8, 4.0]), np.array([1.0, 2.0, 4.0])
    assert mape(a, b) == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert mape(a, np.zeros(3)) is None
    assert ks_distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6])) == pytest.approx(0.5)
    assert ks_distance(a, np.zeros(0)) is None
    assert kendall_tau(np.array([1.0, 2, 3]), np.array([10.0, 30, 20])) == pytest.approx(1 / 3)
    assert kendall_tau(np.array([1.0]), np.array([1.0])) is None
    assert kendall_tau(np.ones(3), np.arange(3.0)) is None


_steps = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=1, max_size=15)


@given(_steps)
def test_step_average_is_exact(steps: list[tuple[int, int]]) -> None:
    steps = sorted(steps, key=lambda s: s[0])
    t, v = (np.array(column, dtype=np.float64) for column in zip(*steps, strict=True))
    edges = np.array([0.0, 7.0, 20.0, 64.0])
    second = np.zeros(64)  # value during each whole second: the last one set at or before it
    for at, value in steps:
        second[at:] = value
    expected = [second[int(a) : int(b)].mean() for a, b in pairwise(edges)]
    np.testing.assert_allclose(step_average(t, v, edges), expected, atol=1e-12)
    np.testing.assert_array_equal(step_average(np.zeros(0), np.zeros(0), edges), np.zeros(3))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=25))
def test_lanes_never_overlap_and_are_as_few_as_can_be(spans: list[tuple[int, int]]) -> None:
    spans = sorted((a, a + length) for a, length in spans)
    start, end = (np.array([s[i] for s in spans], dtype=np.float64) for i in (0, 1))
    lanes = assign_lanes(start, end)
    for lane in set(lanes.tolist()):
        mine = lanes == lane
        assert (end[mine][:-1] <= start[mine][1:]).all()
    most = max((sum(a <= t < b for a, b in spans) for t in range(41)), default=0)
    assert len(set(lanes.tolist())) <= max(most, 1 if spans else 0)


def test_stays_of_the_run(big_run: Run) -> None:
    table = stays(big_run)
    assert len(table) == 1000
    assert int(table["lane"].max()) == 7
    assert table["method"].notna().all()


def mm1_turnarounds(rng: np.random.Generator, load: float, jobs: int) -> np.ndarray:  # type: ignore[type-arg]
    """Turnarounds of an M/M/1 queue that starts empty, by Lindley's recursion."""
    gaps, sizes = rng.exponential(1 / load, jobs), rng.exponential(1, jobs)
    waits = np.zeros(jobs)
    for i in range(1, jobs):
        waits[i] = max(0.0, waits[i - 1] + sizes[i - 1] - gaps[i])
    return waits + sizes


def test_intervals_over_jobs_cover_a_queue() -> None:
    """Blocks of sqrt(n) jobs held the mean in 79% of such runs; single jobs do in far fewer."""
    rng = np.random.default_rng(4)
    truth = 1 / (1 - 0.6)
    runs = [mm1_turnarounds(rng, 0.6, 800) for _ in range(120)]
    found = [over_jobs(run) for run in runs]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.85
    # a policy that takes a tenth off every turnaround: the paired interval finds it at once
    change = change_over_jobs(0.9 * runs[0], runs[0])
    assert change.low == pytest.approx(-0.1)
    assert change.high == pytest.approx(-0.1)


def test_batches_are_kept_as_text_and_say_the_same() -> None:
    from loramux_analysis.intervals import change_of_batches, of_batches
    from loramux_traces.batches import batch_columns, batch_means, read_batches

    rng = np.random.default_rng(5)
    jobs = pd.DataFrame(
        {
            "job_id": [f"j{i:03}" for i in range(203)],
            "submission_time": np.cumsum(rng.exponential(1, 203)),
            "turnaround_time": rng.lognormal(3, 1, 203),
            "waiting_time": rng.lognormal(2, 1, 203),
            "stretch": rng.lognormal(0, 1, 203),
            "final_state": [COMPLETED] * 203,
        }
    )
    text = batch_columns(jobs.sample(frac=1.0, random_state=1))["turnaround_batches_s"]
    values = jobs["turnaround_time"].to_numpy()
    whole, kept = over_jobs(values), of_batches(read_batches(text), float(values.mean()), len(values))
    assert (kept.mean, kept.low, kept.high) == pytest.approx((whole.mean, whole.low, whole.high))
    base = values * rng.lognormal(0, 0.3, 203)
    change = change_of_batches(batch_means(values), batch_means(base), (values.sum(), base.sum()), 203)
    assert change == change_over_jobs(values, base)
    assert change.low < values.sum() / base.sum() - 1 < change.high
    # the warm-up is no part of it; junk and short tables have no batches
    late = batch_columns(jobs, warmup=0.5)["turnaround_batches_s"]
    assert read_batches(late) == pytest.approx(batch_means(values[101:]))
    assert batch_columns(jobs.head(19))["turnaround_batches_s"] == ""
    for junk in ("", "1 2 3", "a b c d e", "1 2 3 4 nan", None):
        assert len(read_batches(junk)) == 0
