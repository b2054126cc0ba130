"""Facts of a trace."""

from __future__ import annotations

import json

import pytest

from loramux_traces import JobSpec, Trace, build_trace, generate, read_trace, sample_path
from loramux_traces.describe import describe, fact_rows


def small() -> Trace:
    times, sizes, gpus = [0.0, 5.0, 25.0, 30.0], [10.0, 20.0, 30.0, 40.0], [1, 1, 2, 1]
    return build_trace(
        "t",
        [
            JobSpec(
                job_id=f"j{i}",
                submit_s=times[i],
                base_model="llama-7b",
                method="lora",
                batch_size=8,
                seq_len=512.0,
                duration_s=sizes[i],
                num_gpus=gpus[i],
                user=f"u{i % 2}",
            )
            for i in range(4)
        ],
    )


def test_figures_by_hand() -> None:
    facts = describe(small(), servers=2)
    assert (facts["jobs"], facts["span_s"], facts["users"], facts["groups"]) == (4, 30.0, 2, 0)
    assert facts["interarrival_s"]["mean"] == 10
    assert facts["interarrival_s"]["cv2"] == pytest.approx(0.5)
    assert facts["gaps_under_10s_share"] == pytest.approx(2 / 3)
    assert facts["duration_s"]["p50"] == 25
    assert facts["duration_s"]["cv2"] == pytest.approx(0.2)
    assert facts["gpu_seconds"] == 130
    assert facts["offered_load"] == pytest.approx(130 / 60)
    assert facts["num_gpus"] == {"1": 0.75, "2": 0.25}


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_json_without_nan_for_any_trace(jobs: int) -> None:
    for trace in (generate("aspen-8", jobs=jobs), generate("poisson", jobs=jobs), generate("hparam-search", jobs=jobs)):
        facts = describe(trace)
        json.dumps(facts, allow_nan=False)
        assert fact_rows(facts)


def test_the_sample() -> None:
    facts = describe(read_trace(sample_path()), servers=4)
    assert facts["offered_load"] == pytest.approx(0.9, rel=1e-3)
    assert facts["interarrival_s"]["cv2"] > 3
    assert sum(facts["batch_size"].values()) == pytest.approx(1)
    assert len(facts["num_gpus"]) == 3


def test_long_lists_are_summed() -> None:
    shares = describe(generate("philly-like", jobs=2000, seed=1))["base_model"]
    assert sum(shares.values()) == pytest.approx(1)
    users = describe(generate("hparam-search", jobs=200, trials=1, seed=1, mean_steps=50))
    assert len(users["rank"]) <= 9
