"""Split conformal upper bounds: the right rank, coverage, censored observations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loramux_profiles.bounds import conformal_log_ratio, conformal_margin, points_needed, raised_margin, trusted_tokens


def test_ninety_nine_points_for_one_percent() -> None:
    assert points_needed(0.01) == 99 and points_needed(0.1) == 9
    ratios = np.linspace(1.0, 1.2, 99)
    assert conformal_margin(ratios, np.ones(99)) == pytest.approx(0.2)  # the largest of 99
    assert conformal_margin(ratios[:98], np.ones(98)) == math.inf


def test_coverage_on_fresh_steps() -> None:
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(400):
        actual = np.exp(rng.normal(0.02, 0.05, 300))
        margin = conformal_margin(actual[:199], np.ones(199), alpha=0.05)
        missed.append(float(np.mean(actual[199:] > 1 + margin)))
    assert np.mean(missed) == pytest.approx(0.05, abs=0.006)


def test_an_out_of_memory_counts_as_larger_than_anything() -> None:
    actual = [1.0] * 98 + [math.inf]
    assert conformal_margin(actual, [1.0] * 99) == math.inf
    assert conformal_margin([1.0] * 198 + [math.inf], [1.0] * 199) == 0.0
    margin = raised_margin(0.1, dynamic_bytes=10.0, static_bytes=60.0, capacity_bytes=79.0)
    assert 60 + 10 * (1 + margin) > 79
    assert raised_margin(2.0, 10.0, 60.0, 79.0) == 2.0
    assert raised_margin(0.1, 0.0, 60.0, 79.0) == 0.1


def test_never_negative_and_refuses_nonsense() -> None:
    assert conformal_margin([0.9] * 200, [1.0] * 200) == 0.0
    for actual, predicted, alpha in (
        ([1.0], [1.0, 2.0], 0.1),
        ([0.0], [1.0], 0.1),
        ([1.0], [-1.0], 0.1),
        ([1.0], [1.0], 0.0),
    ):
        with pytest.raises(ValueError):
            conformal_log_ratio(actual, predicted, alpha)


def test_trust_ends_a_quarter_above_the_largest_step() -> None:
    assert trusted_tokens([100.0, 4096.0]) == 5120
    assert trusted_tokens([]) == 0
