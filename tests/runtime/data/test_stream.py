"""The order of samples: every row once an epoch, by (seed, epoch) alone.

And the lengths that a scheduler needs.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramux_runtime.data import SampleStream, TokenisedRows, length_stats


@given(n=st.integers(1, 50), seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_every_row_once_an_epoch_from_any_start(n: int, seed: int, epoch: int) -> None:
    stream = SampleStream(n, seed)
    rows = stream.rows(epoch * n, n)
    assert sorted(rows) == list(range(n))
    middle = epoch * n + n // 2
    assert SampleStream(n, seed).rows(middle, 3 * n) == [stream.row(s) for s in range(middle, middle + 3 * n)]
    assert stream.epoch(middle) == epoch


def test_epochs_and_seeds_differ_and_the_order_is_pinned() -> None:
    stream = SampleStream(100, 7)
    first = stream.rows(0, 100)
    assert first != stream.rows(100, 100) and first != SampleStream(100, 8).rows(0, 100)
    # A changed order would silently spoil every resumed job.
    assert SampleStream(8, 7).rows(0, 16) == [1, 4, 6, 0, 7, 5, 2, 3, 6, 0, 4, 1, 3, 5, 2, 7]
    assert SampleStream(5, 7, shuffle=False).rows(3, 6) == [3, 4, 0, 1, 2, 3]


def test_few_orders_are_kept() -> None:
    stream = SampleStream(3, 1)
    stream.rows(0, 300)
    assert len(stream._orders) == 2


@pytest.mark.parametrize(("n", "seed", "sample"), [(0, 0, 0), (1, -1, 0), (1, 0, -1)])
def test_what_a_stream_refuses(n: int, seed: int, sample: int) -> None:
    with pytest.raises(ValueError, match=r"must be 0 or more|at least one"):
        SampleStream(n, seed).row(sample)


def rows_of(lengths: list[int]) -> TokenisedRows:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenisedRows(np.zeros(starts[-1], np.int32), np.ones(starts[-1], np.bool_), starts[:-1], starts[1:])


def test_length_statistics() -> None:
    stats = length_stats(rows_of(list(range(1, 1001))))
    assert (stats.rows, stats.mean, stats.max) == (1000, 500.5, 1000)
    assert (stats.p50, stats.p95, stats.p99, stats.p999) == (500, 950, 990, 999)
    with pytest.raises(ValueError, match="no rows"):
        length_stats(rows_of([]))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80))
def test_quantiles_are_lengths_that_occur(lengths: list[int]) -> None:
    stats = length_stats(rows_of(lengths))
    ordered = (stats.p50, stats.p95, stats.p99, stats.p999, stats.max)
    assert list(ordered) == sorted(ordered) and set(ordered) <= set(lengths)
    assert sum(length <= stats.p95 for length in lengths) >= 0.95 * len(lengths)
