"""The time model falls apart by job.

Its counts are right where they can be counted by hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_profiles.time_features import FEATURES, INDEX, step_features
from loramux_profiles.time_model import TimeModel
from loramux_profiles.widths import experts_by_layer

from .measured import SHAPE, random_step, truth


@pytest.mark.parametrize("exact", [True, False])
def test_the_sum_by_job_is_the_sum_by_feature(exact: bool) -> None:
    model = replace(truth(), exact=exact)
    rng = np.random.default_rng(1)
    for _ in range(200):
        point = random_step(rng)
        by_feature = float(step_features(SHAPE, point, exact=exact) @ np.asarray(model.coefficients))
        assert model.seconds(point) == pytest.approx(by_feature, rel=1e-12)


def test_seconds_are_the_step_and_its_jobs() -> None:
    model = truth()
    point = random_step(np.random.default_rng(2))
    jobs = [model.job(job.adapter, recompute=point.recompute) for job in point.jobs]
    own = sum(time.seconds(job) for time, job in zip(jobs, point.jobs, strict=True))
    assert model.seconds(point) == pytest.approx(model.step_s(recompute=point.recompute) + own)
    assert all(time.shared_s == 0 for time in jobs)  # in exact mode nothing is shared


def test_a_second_job_of_a_structure_shares_its_kernels() -> None:
    model = replace(truth(), exact=False)
    job = JobPoint(adapter=AdapterPoint(method="lora", rank=8), lengths=(50, 20), labels=30)
    other = replace(job, adapter=replace(job.adapter, rank=16))
    one, two, mixed = (model.seconds(StepPoint(jobs=jobs)) for jobs in ((job,), (job, job), (job, other)))
    own = model.job(job.adapter)
    assert two - one == pytest.approx(own.seconds(job))
    assert mixed - one == pytest.approx(model.job(other.adapter).seconds(other) + own.shared_s)


def test_counts_of_a_lora_job_by_hand() -> None:
    adapter = AdapterPoint(method="lora", rank=5, targets="qv", dropout=False)
    point = StepPoint(jobs=(JobPoint(adapter=adapter, lengths=(3, 4), labels=2),))
    found = dict(zip(FEATURES, step_features(SHAPE, point), strict=True))
    d, f, q, kv, layers = SHAPE.hidden, SHAPE.ffn, SHAPE.q_dim, SHAPE.kv_dim, SHAPE.layers
    assert found["frozen_flops"] == 4 * 7 * layers * (2 * d * q + 2 * d * kv + 3 * d * f)
    assert found["head_flops"] == 4 * SHAPE.vocab * d * 2
    assert found["pair_flops"] == 6 * 7 * layers * 8 * (2 * d + q + kv)  # rank 5 is kept 8 wide
    assert found["parameters"] == layers * 8 * (2 * d + q + kv)
    assert found["attention_flops"] == 7 * layers * q * (9 + 16)
    assert found["step"] == found["job"] == 1
    unused = set(FEATURES) - {name for name, value in found.items() if value}
    assert unused >= {"drop_elements", "router_flops", "slot_elements", "dora_weights", "step_again"}


def test_recompute_never_takes_less() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        point = random_step(rng)
        again = step_features(SHAPE, replace(point, recompute=True))
        assert np.all(again >= step_features(SHAPE, replace(point, recompute=False)))


def test_experts_by_group_of_layers() -> None:
    assert experts_by_layer((2, 6), 5) == (2, 2, 2, 6, 6)


def test_bad_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="coefficients for"):
        TimeModel(SHAPE, (1.0,))
    with pytest.raises(ValueError, match="nonsense"):
        TimeModel.of(SHAPE, {"nonsense": 1.0})
    assert TimeModel.of(SHAPE, {"job": 2.0}).named() == {"job": 2.0}
    assert TimeModel.of(SHAPE, {"job": 2.0}).coefficients[INDEX["job"]] == 2.0
