"""Expected fused steps.

The mean of real steps, packed and padded, at and around the launch floor.
"""

from __future__ import annotations

import timeit
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_profiles.cost import CostModel, Fusion
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_profiles.rates import expected_step
from loramux_profiles.steptime import method_floors, step_of_lengths, step_seconds
from loramux_profiles.work import JobCost
from loramux_traces.job import JobSpec

FUSIONS: tuple[Fusion, ...] = ("packed", "padded")


def _spec(**fields: Any) -> JobSpec:
    values = {
        "job_id": "j",
        "submit_s": 0,
        "base_model": "llama-2-7b",
        "method": "lora",
        "batch_size": 4,
        "seq_len": 200,
    }
    return JobSpec(**{**values, "total_steps": 10, **fields})


def _with(device: DeviceProfile, **values: float) -> DeviceProfile:
    data = device.model_dump()
    for name, value in values.items():
        data["parameters"][name]["value"] = value
    return DeviceProfile.model_validate(data)


def _drawn(costs: Sequence[JobCost], fusion: Fusion, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard error) of seconds and computed tokens over n drawn steps."""
    rng = np.random.default_rng(0)
    steps = [step_of_lengths(costs, [cost.lengths.draw(rng, cost.rows) for cost in costs], fusion) for _ in range(n)]
    drawn = np.array(steps)
    return drawn.mean(axis=0), drawn.std(axis=0) / n**0.5


# Launch times that bind never, sometimes (where the mean of a maximum matters) and always.
@pytest.mark.parametrize("c1", [1e-9, 2.5e-5, 1e-3])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(
    "jobs",
    [
        [{"batch_size": 1}],
        [{"batch_size": 4, "length_dist": "train"}],
        [
            {"batch_size": 1, "seq_len": 300},
            {"batch_size": 2, "length_dist": "sql"},
            {"method": "mixlora", "batch_size": 1},
        ],
        [{"batch_size": 2, "seq_len": 20.0 + 30 * i, "length_dist": "alpaca"} for i in range(8)],
    ],
)
def test_the_expected_step_is_the_mean_of_drawn_steps(c1: float, fusion: Fusion, jobs: list[dict[str, Any]]) -> None:
    model = CostModel(_with(load_device("a100-80g"), c1=c1), fusion=fusion)
    costs = [model.job_cost(_spec(**job)) for job in jobs]
    mean, error = _drawn(costs, fusion, 4000)
    ours = model.expected_step(costs)
    # Padded is exact; packed is within 0.6% (the strata of several rows are one sample of their
    # sum).
    slack = 4 * error + (0.006 if fusion == "packed" else 1e-9) * mean
    assert abs(ours.seconds - mean[0]) <= slack[0]
    assert abs(ours.computed_tokens - mean[1]) <= slack[1]
    assert ours.real_tokens == pytest.approx(sum(cost.rows * cost.lengths.mean for cost in costs))
    if fusion == "packed":
        assert ours.computed_tokens - ours.real_tokens == pytest.approx(3.5, abs=0.3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_constant_lengths_are_exact(fusion: Fusion) -> None:
    model = CostModel(load_device("a100-80g"), fusion=fusion)
    costs = [
        model.job_cost(_spec(seq_len=n, length_dist="constant", batch_size=b)) for n, b in ((203, 2), (77, 5), (8, 1))
    ]
    rows = [np.full(cost.rows, cost.length_q) for cost in costs]
    seconds, computed = model.step_s(costs, rows)
    assert model.expected_step(costs).seconds == pytest.approx(seconds, rel=1e-12)
    assert model.expected_step(costs).computed_tokens == pytest.approx(computed, rel=1e-12)
    assert computed == (8 * 208 if fusion == "padded" else 800)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_solo_step_is_the_expected_step_of_one_whatever_the_seed(fusion: Fusion) -> None:
    model = CostModel(load_device("h100-80g"), fusion=fusion)
    cost = model.job_cost(_spec(batch_size=3, length_dist="llava"))
    for seed in (0, 1, 2**62):
        assert expected_step([cost], fusion, [seed]).seconds == cost.solo_step_s


def test_seeds_matter_little() -> None:
    model = CostModel(load_device("h100-80g"))
    costs = [model.job_cost(_spec(batch_size=2))] * 4
    values = [model.expected_step(costs, [s, s + 11, s + 17, s + 29]).seconds for s in range(20)]
    assert np.ptp(values) / np.mean(values) < 0.01


times = st.lists(
    st.tuples(
        st.sampled_from(["lora", "mixlora", "dynmole"]), st.integers(1, 4), st.sampled_from([30.0, 100.0, 333.3])
    ),
    min_size=1,
    max_size=5,
)


@given(times, st.sampled_from(FUSIONS))
@settings(max_examples=50, deadline=None)
def test_fusing_costs_at_least_the_slowest_and_packed_at_most_the_sum(jobs: list[Any], fusion: Fusion) -> None:
    model = CostModel(load_device("h100-80g"), fusion=fusion)
    costs = [model.job_cost(_spec(method=m, batch_size=b, seq_len=s)) for m, b, s in jobs]
    fused = model.expected_step(costs).seconds
    solo = [cost.solo_step_s for cost in costs]
    assert fused >= max(solo) * (1 - 1e-9)
    if fusion == "packed":
        assert fused <= sum(solo) * (1 + 1e-9)


def test_methods_pay_their_launches_once() -> None:
    model = CostModel(load_device("h100-80g"))
    lora, mix, qv = (
        model.job_cost(_spec(**fields))
        for fields in ({}, {"method": "mixlora"}, {"target_modules": "qv", "batch_size": 1})
    )
    assert method_floors([lora, lora, model.job_cost(_spec(rank=64))]) == lora.method_floor_s
    assert method_floors([lora, mix]) == lora.method_floor_s + mix.method_floor_s
    assert qv.method == "lora:qv" and qv.method_floor_s < lora.method_floor_s


def test_step_seconds_is_the_larger_of_launches_and_work() -> None:
    base = CostModel(load_device("a100-80g")).job_cost(_spec()).base
    assert step_seconds(base, 0.01, 0.0, 0.5) == max(base.floor_s + 0.01, base.read_s) + 0.5
    assert step_seconds(base, 0.01, 9.0, 0.5) == base.read_s + 9.5


def test_a_set_of_eight_takes_tens_of_microseconds() -> None:
    model = CostModel(load_device("a100-80g"))
    costs = [model.job_cost(_spec(seq_len=100 + 10 * i)) for i in range(8)]
    model.expected_step(costs)
    best = min(timeit.repeat(lambda: model.expected_step(costs), number=200, repeat=5)) / 200
    assert best < 200e-6  # about 15 us here; the bound leaves room for a loaded machine
