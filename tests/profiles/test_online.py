"""The online refit finds a shifted truth and keeps the bound's promise while it moves.

It is not led astray.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from loramux_profiles.online import LogRatio, OnlineRefit

from .measured import random_step, truth, walk


def refit(margin: float = 0.02) -> OnlineRefit:
    return OnlineRefit(fitted_s=truth().seconds, fitted_bytes=walk, margin=margin)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_it_converges_to_a_truth_that_is_30_percent_off(factor: float) -> None:
    online = refit()
    rng = np.random.default_rng(0)
    for _ in range(300):
        point = random_step(rng)
        noise = np.exp(0.03 * rng.standard_normal(2))
        online.see(
            point, seconds=factor * noise[0] * truth().seconds(point), dynamic_bytes=factor * noise[1] * walk(point)
        )
    point = random_step(rng)
    assert online.seconds(point) == pytest.approx(factor * truth().seconds(point), rel=0.03)
    assert online.dynamic_bytes(point) == pytest.approx(factor * walk(point), rel=0.03)


def test_within_twenty_steps_most_of_a_shift_is_followed() -> None:
    online = refit()
    rng = np.random.default_rng(0)
    for _ in range(20):
        point = random_step(rng)
        online.see(point, seconds=1.3 * truth().seconds(point))
    assert online.time_ratio.factor == pytest.approx(1.3, rel=0.06)


def test_the_bound_is_seldom_exceeded_after_a_shift() -> None:
    online = refit()
    rng = np.random.default_rng(1)
    for _ in range(2000):
        point = random_step(rng)
        online.see(point, dynamic_bytes=1.3 * walk(point) * np.exp(0.01 * rng.standard_normal()))
    assert online.steps == 2000
    assert online.above / online.steps < 0.015
    assert online.margin_now < 0.1  # the shift is in the factor, not in the margin as well


def test_a_step_above_the_bound_is_within_it_from_then_on() -> None:
    online = refit()
    point = random_step(np.random.default_rng(2))
    observed = 1.5 * walk(point)
    online.see(point, dynamic_bytes=observed)
    assert online.bound_bytes(point) >= observed * (1 - 1e-12)


def test_no_shift_leaves_the_bound_alone() -> None:
    online = refit(margin=0.05)
    rng = np.random.default_rng(3)
    for _ in range(200):
        point = random_step(rng)
        online.see(point, dynamic_bytes=walk(point))
    assert online.margin_now == pytest.approx(0.05)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_measurement_is_passed_over(value: float) -> None:
    ratio = LogRatio()
    ratio.see(value, 1.0)
    ratio.see(1.0, value)
    assert ratio.factor == 1.0


def test_one_wild_step_moves_little() -> None:
    ratio = LogRatio()
    for _ in range(50):
        ratio.see(1.0, 1.0)
    ratio.see(1e6, 1.0)
    assert ratio.factor < 1.05


def test_a_bound_needs_a_margin_and_a_level() -> None:
    with pytest.raises(ValueError, match="no bound"):
        refit(margin=-0.1)
