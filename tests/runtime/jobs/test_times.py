"""Clocks of a run: what ends a wait."""

from __future__ import annotations

from math import inf

import pytest

from loramux_runtime.live.drive.live_times import MonotonicTimes, PredictedLiveTimes
from loramux_runtime.train.times import PredictedTimes, RealTimes, Times


@pytest.mark.parametrize("times", [RealTimes(), MonotonicTimes()])
@pytest.mark.parametrize("until_s", [1e9, inf])
def test_news_ends_a_wait_on_a_real_clock(times: Times, until_s: float) -> None:
    """A run that waited for its next job slept until then once, whatever signal came."""
    answers = iter([False, False, True])
    times.wait_until(until_s, lambda: next(answers))
    assert next(answers, None) is None and times.now_s() < 1e9


@pytest.mark.parametrize("times", [RealTimes(), MonotonicTimes()])
def test_a_wait_ends_at_its_time_without_news(times: Times) -> None:
    until_s = times.now_s() + 0.02
    times.wait_until(until_s, lambda: False)
    assert times.now_s() >= until_s


@pytest.mark.parametrize("times", [PredictedTimes(), PredictedLiveTimes()])
def test_predicted_time_jumps_and_never_goes_back(times: Times) -> None:
    times.wait_until(50.0, lambda: pytest.fail("nobody is asked where there is a time to jump to"))
    assert times.now_s() == 50.0
    times.wait_until(20.0, lambda: False)
    assert times.now_s() == 50.0
    answers = iter([False, True])
    times.wait_until(inf, lambda: next(answers))
    assert next(answers, None) is None and times.now_s() == 50.0
