"""Length distributions.

The mean asked for, and quantiles, sums, strata, grid and draws that all agree.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_profiles.lengths import NAMES, STRATA, LengthDist, describe, length_dist, moments
from loramux_traces.errors import UsageError

names = st.sampled_from([None, *NAMES])
means = st.floats(1, 3000) | st.integers(1, 3000).map(float)


@given(means, names)
@settings(max_examples=100, deadline=None)
def test_mean_is_the_one_asked_for(mean: float, name: str | None) -> None:
    dist = length_dist(mean, None, name)
    assert dist.mean == pytest.approx(mean, rel=1e-6)
    assert np.all(np.diff(dist.cdf) >= 0) and dist.cdf[-1] == 1.0
    assert len(dist.cdf) <= 131_072 and dist.longest <= 8 * mean + 2


@pytest.mark.parametrize("name", [None, *NAMES])
def test_long_sequences_are_counted_in_larger_units(name: str | None) -> None:
    dist = length_dist(1_048_576.0, None, name)
    assert dist.mean == pytest.approx(1_048_576, rel=1e-4)
    assert len(dist.cdf) <= 131_072
    lengths = dist.draw(np.random.default_rng(1), 100)
    assert lengths.min() >= dist.shortest and lengths.max() <= dist.longest


@given(st.floats(20, 2000), st.floats(1.01, 3.5))
@settings(max_examples=50, deadline=None)
def test_p95_is_the_one_asked_for(mean: float, ratio: float) -> None:
    dist = length_dist(mean, mean * ratio)
    assert dist.quantile(0.95) == pytest.approx(mean * ratio, rel=0.04, abs=1)


def test_p95_at_its_ends() -> None:
    assert length_dist(100.0, 100.0).longest == 100
    assert length_dist(100.0, 5000.0).mean == pytest.approx(
        100, rel=1e-6
    )  # more skewed than any lognormal: the most skewed
    assert length_dist(100.0).quantile(0.95) == pytest.approx(200, abs=2)


def test_constant_between_two_lengths_mixes_them() -> None:
    dist = length_dist(10.25, None, "constant")
    draws = dist.draw(np.random.default_rng(0), 10_000)
    assert set(draws) == {10, 11}
    assert dist.mean == 10.25


def test_unknown_names_suggest() -> None:
    with pytest.raises(UsageError, match="did you mean alpaca"):
        length_dist(100.0, None, "alpacca")
    with pytest.raises(UsageError):
        length_dist(0.5)
    assert [name for name, _ in describe()] == list(NAMES)


def test_equal_arguments_give_the_same_object() -> None:
    assert length_dist(512.0) is length_dist(512.0, None, None)


def _pmf(dist: LengthDist) -> np.ndarray:
    return np.diff(dist.cdf, prepend=0.0)


@given(means, names, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_quantile_is_the_inverse_of_the_cdf(mean: float, name: str | None, p: float) -> None:
    dist = length_dist(mean, None, name)
    q = int(dist.quantile(p))
    assert dist.shortest <= q <= dist.longest
    index = q // dist.unit - 1
    assert dist.cdf[index] >= p
    if index > 0 and p > 0:
        assert dist.cdf[index - 1] < p


def test_draws_follow_the_table() -> None:
    dist = length_dist(300.0, None, "alpaca")
    draws = dist.draw(np.random.default_rng(0), 200_000)
    assert draws.mean() == pytest.approx(300, rel=0.005)
    assert (draws.astype(float) ** 2).mean() == pytest.approx(moments(dist).square, rel=0.01)
    for p in (0.05, 0.5, 0.95, 0.99):
        assert np.quantile(draws, p) == pytest.approx(dist.quantile(p), rel=0.02)


@given(means, names)
@settings(max_examples=40, deadline=None)
def test_log_cdf_on_the_grid(mean: float, name: str | None) -> None:
    dist = length_dist(mean, None, name)
    grid = dist.log_cdf_on_grid(dist.longest)
    assert len(grid) == -(-dist.longest // 8)
    assert np.all(np.isfinite(grid)) and grid[-1] == 0.0 and np.all(np.diff(grid) >= 0)
    # mean of the rounded-up length, two ways
    cdf = np.exp(grid)
    by_grid = float(np.diff(cdf, prepend=0.0) @ (8 * np.arange(1, len(grid) + 1)))
    rounded = -(-(np.arange(1, len(dist.cdf) + 1)) // 8) * 8
    assert by_grid == pytest.approx(float(_pmf(dist) @ rounded), rel=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 40, 128, 129, 500])
@pytest.mark.parametrize("name", ["lognormal", "uniform", "sql", "train"])
def test_sum_quantile_matches_draws(rows: int, name: str) -> None:
    dist = length_dist(200.0, None, name)
    sums = dist.draw(np.random.default_rng(rows), (30_000 if rows < 200 else 8_000, rows)).sum(axis=1)
    for p, slack in ((0.5, 0.01), (0.99, 0.02), (0.999, 0.04)):
        assert dist.sum_quantile(rows, p) == pytest.approx(np.quantile(sums, p), rel=slack)


def test_sum_quantile_of_a_constant() -> None:
    assert length_dist(100.0, None, "constant").sum_quantile(7, 0.999) == 700


@given(means, names, st.sampled_from([1, 2, 5, 16, 128, 300]), st.integers(0, 2**63))
@settings(max_examples=60, deadline=None)
def test_strata_keep_the_means(mean: float, name: str | None, rows: int, seed: int) -> None:
    dist = length_dist(mean, None, name)
    tokens, squares = dist.strata(rows, seed)
    assert len(tokens) == len(squares) == STRATA
    assert tokens.mean() == pytest.approx(rows * dist.mean, rel=1e-9)
    assert squares.mean() == pytest.approx(rows * moments(dist).square, rel=1e-9)
    assert tokens.min() >= rows * dist.shortest * 0.999 or rows > 128


def test_strata_spread_like_sums_and_seeds_only_reorder() -> None:
    dist = length_dist(300.0)
    for rows in (1, 4, 64, 300):
        tokens, _ = dist.strata(rows, 5)
        other, _ = dist.strata(rows, 6)
        assert tokens.std() == pytest.approx((rows * moments(dist).variance) ** 0.5, rel=0.1)
        assert not np.array_equal(tokens, other) and np.array_equal(np.sort(tokens), np.sort(other))
        assert np.array_equal(tokens, dist.strata(rows, 5)[0])
        assert abs(np.corrcoef(tokens, other)[0, 1]) < 0.2


def test_cut_lengths_are_the_same_up_to_the_cut() -> None:
    dist = length_dist(100.0)
    short = dist.cut(300)
    assert short.longest == 300
    assert short is dist.cut(300)
    assert dist.cut(dist.longest) is dist
    assert short.cdf[:299].tolist() == dist.cdf[:299].tolist()
    draws = np.random.default_rng(1).random(5000)
    assert short.quantile(draws).tolist() == np.minimum(dist.quantile(draws), 300).tolist()
    assert dist.mean - 0.5 < short.mean < dist.mean


@pytest.mark.parametrize("seq_len", [1.0, 200_000.0, 1_048_576.0])
def test_cutting_keeps_whole_units(seq_len: float) -> None:
    dist = length_dist(seq_len)
    half = dist.cut(max(1, dist.longest // 2))
    assert 0 < half.longest <= max(dist.unit, dist.longest // 2)
    assert half.cdf[-1] == 1.0
