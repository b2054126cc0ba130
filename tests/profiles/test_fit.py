"""Fits recover laws that are known, state their errors honestly, and keep the bound's promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramux_profiles.bounds import ALPHA
from loramux_profiles.devices import load_device
from loramux_profiles.fit import fit_memory, fit_record, fit_time, static_bytes, time_model
from loramux_profiles.records import ProfileRecord
from loramux_profiles.regression import cross_validated, errors, folds, relative_nnls
from loramux_profiles.step_point import StepPoint
from loramux_traces.errors import UsageError

from .measured import SHAPE, document, random_step, record, truth, walk


def test_least_squares_recover_coefficients() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(0, [1e9, 1.0, 1e3], (60, 3))
    found = relative_nnls(features, features @ np.asarray([1e-9, 0.5, 0.0]) + 0.0)
    assert found == pytest.approx([1e-9, 0.5, 0.0], rel=1e-6, abs=1e-12)


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 40)
    assert np.all(relative_nnls(np.stack([np.ones(40), x], 1), 3 - x) >= 0)


def test_one_busy_moment_does_not_bend_a_fit() -> None:
    x = np.linspace(1, 2, 50)
    y = x.copy()
    y[7] *= 3
    assert relative_nnls(x[:, None], y)[0] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("actual", [[], [1.0, 0.0]])
def test_nothing_to_fit_is_an_error(actual: list[float]) -> None:
    with pytest.raises(ValueError, match="measurements"):
        relative_nnls(np.ones((len(actual), 1)), np.asarray(actual))


def test_folds_test_each_point_once() -> None:
    parts = list(folds(23, 5))
    assert sorted(i for _, test in parts for i in test) == list(range(23))
    assert all(not set(train) & set(test) for train, test in parts)


def test_errors_of_known_predictions() -> None:
    found = errors(np.asarray([1.0, 2.0, 4.0]), np.asarray([0.9, 2.0, 5.0]))
    assert (found.mape, found.worst_under, found.worst_over, found.median) == pytest.approx((0.35 / 3, 0.1, 0.25, 0.1))
    with pytest.raises(ValueError, match="no points"):
        errors(np.asarray([]), np.asarray([]))


def test_times_of_a_known_device_are_recovered() -> None:
    measured = record(200)
    section = fit_record(measured, None, None, date="2026-01-02")
    model = time_model(measured.model_copy(update={"fit": section}))
    rng = np.random.default_rng(99)
    for _ in range(50):
        point = random_step(rng)
        assert model.seconds(point) == pytest.approx(truth().seconds(point), rel=0.01)


def test_cross_validated_time_error_is_about_the_noise() -> None:
    fit = fit_time(record(200, noise=0.03, spread=0.01), load_device("cpu"))
    assert 0.015 < fit.cross_validated.mape < 0.05
    assert fit.cross_validated.mape < min(rival.mape for rival in fit.rivals.values())
    assert set(fit.rivals) == {"mlora", "tokens", "linear", "prior"}
    assert len(fit.residuals) == 200


def test_memory_scale_and_offset_are_recovered() -> None:
    fit = fit_memory(record(150), walk, load_device("cpu"))
    assert fit.scale == pytest.approx(1.1, rel=1e-4)
    assert fit.offset_bytes == pytest.approx(5_000, rel=0.01)
    assert fit.cross_validated.mape < 1e-4
    assert fit.rivals["mlora"].mape > 0.05
    assert fit.trusted_tokens == 1.25 * max(p.point.tokens for p in record(150).points)


def test_the_bound_is_exceeded_as_rarely_as_it_says() -> None:
    """150 fits of 120 steps each against 20 further ones.

    At most 1% above (and the bound is not just huge).
    """
    above = total = 0
    margins = []
    for seed in range(30):
        fit = fit_memory(record(120, noise=0.02, seed=seed), walk, None)
        margins.append(fit.margin)
        for row in record(100, noise=0.02, seed=1000 + seed).points:
            above += (row.memory.dynamic or 0) > (1 + fit.margin) * (fit.scale * walk(row.point) + fit.offset_bytes)
            total += 1
    assert above / total <= 1.6 * ALPHA  # 3,000 draws: two standard errors above 1%
    assert np.median(margins) < 0.08


def out_of_memory(factor: float) -> ProfileRecord:
    """A record with one more step, that ran out at `factor` times what it is predicted to need."""
    content = document(250)
    point = random_step(np.random.default_rng(5))
    known = factor * (1.1 * walk(point) + 5_000) + static_bytes(SHAPE, "fp32", point)
    row: dict[str, Any] = {"step": point.to_dict(), "memory": {"censored": True, "known": int(known)}}
    content["points"].append(row)
    return ProfileRecord.model_validate(content)


def test_an_out_of_memory_that_was_foreseen_does_not_raise_the_bound() -> None:
    fit = fit_memory(out_of_memory(0.9), walk, None)
    assert fit.censored == 1
    assert fit.margin == pytest.approx(fit_memory(record(250), walk, None).margin)


def test_one_that_was_not_counts_as_above_any_prediction() -> None:
    found, without = fit_memory(out_of_memory(1.5), walk, None), fit_memory(record(250), walk, None)
    assert found.margin >= without.margin
    assert found.alpha == without.alpha == ALPHA
    content = document(110)
    content["points"].append(out_of_memory(1.5).points[-1].model_dump())
    assert fit_memory(ProfileRecord.model_validate(content), walk, None).alpha == pytest.approx(2 / 112)


def test_few_points_support_a_bound_at_a_lower_level_only() -> None:
    assert fit_memory(record(60), walk, None).alpha == pytest.approx(1 / 61)
    assert fit_memory(record(99), walk, None).alpha == ALPHA


def test_too_few_points_are_refused() -> None:
    with pytest.raises(UsageError, match="needs 20"):
        fit_record(record(5), walk, None, date="2026-01-02")


def test_a_record_without_fit_has_no_time_model() -> None:
    with pytest.raises(UsageError, match="loramux fit"):
        time_model(record(2))


def test_cross_validation_does_not_see_the_point() -> None:
    features = np.eye(12)[:, :2] + 0.0
    features[2:] = (1.0, 0.0)
    predicted = cross_validated(features, np.ones(12), 12)
    assert predicted[1] == 0.0  # only this point has the second feature


def test_a_walk_is_any_function_of_a_step() -> None:
    def flat(point: StepPoint) -> float:
        return 1.0

    assert fit_memory(record(120), flat, None).cross_validated.mape > 0.2
