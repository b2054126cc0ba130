"""Jobs of a trace as training jobs, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_profiles.work import JobCost
from loramux_runtime.data import byte_tokenizer
from loramux_runtime.jobs.job_data import job_data
from loramux_runtime.jobs.job_specs import spec_of_data
from loramux_runtime.live.trace_jobs import train_job, whole_steps
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec

TOKENIZER = byte_tokenizer()
METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")


def spec_of(**fields: Any) -> JobSpec:
    known: dict[str, Any] = {
        "job_id": "a",
        "submit_s": 1.5,
        "base_model": "llama-tiny",
        "method": "lora",
        "batch_size": 8,
        "seq_len": 64.0,
        "total_steps": 20.0,
        "dtype": "fp32",
    }
    if "num_samples" in fields or "duration_s" in fields:
        del known["total_steps"]
    return JobSpec(**known | fields)


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    """Any job that one device with a llama-tiny can run."""
    method = draw(st.sampled_from(METHODS))
    batch = draw(st.integers(1, 16))
    seq_len = draw(st.floats(2, 200))
    experts = draw(st.none() | st.integers(2, 8))
    long = draw(st.sampled_from(["steps", "samples"]))
    length: dict[str, Any] = {"total_steps": draw(st.floats(0.2, 500))}
    if long == "samples":
        length = {"num_samples": draw(st.integers(1, 500)), "epochs": draw(st.floats(0.1, 4))}
    return spec_of(
        job_id=draw(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)),
        submit_s=draw(st.floats(0, 1e6)),
        method=method,
        batch_size=batch,
        micro_batch_size=draw(st.none() | st.integers(1, batch)),
        seq_len=seq_len,
        seq_len_p95=draw(st.none() | st.floats(seq_len, 4 * seq_len)),
        length_dist=draw(st.none() | st.sampled_from(["sql", "alpaca", "constant", "lognormal"])),
        dataset=draw(st.sampled_from(["", "sql", "wiki"])),
        user=draw(st.sampled_from(["", "ann"])),
        group=draw(st.sampled_from(["", "lab 1"])),
        priority=draw(st.integers(-5, 5)),
        rank=draw(st.integers(1, 64)),
        alpha=draw(st.none() | st.floats(1, 64)),
        dropout=draw(st.sampled_from([0.0, 0.05])),
        target_modules=draw(st.sampled_from(["all-linear", "mlp"] + ["attention", "qv"] * (method != "mixlora"))),
        num_experts=experts,
        top_k=draw(st.integers(1, 2)),
        lr=draw(st.floats(1e-6, 1.0)),
        seed=draw(st.integers(0, 2**63 - 1)),
        **length,
    )


def constants(cost: JobCost) -> dict[str, Any]:
    """All that a job costs, but for objects that are told apart by identity."""
    names = [name for name in cost.__dataclass_fields__ if name not in ("base", "lengths")]
    return {name: getattr(cost, name) for name in names} | {
        "base": cost.base.key,
        "lengths": cost.lengths.cdf.tobytes(),
    }


@settings(deadline=None, max_examples=60)
@given(spec=specs(), seed=st.integers(0, 99))
@pytest.mark.parametrize("device", ["cpu", "cpu/llama-tiny"])
def test_the_way_back_gives_a_job_that_costs_and_sorts_the_same(device: str, spec: JobSpec, seed: int) -> None:
    job = train_job(spec, seed=seed)
    data = job_data(job, TOKENIZER, vocab_size=259)
    back = spec_of_data(job, data, spec.base_model, dtype=spec.dtype, recompute=spec.recompute)
    model = CostModel(load_device(device))
    assert constants(model.job_cost(back)) == constants(model.job_cost(spec))
    assert spec.steps is not None and back.steps is not None
    assert spec.steps - 1e-6 <= back.steps < max(1.0, spec.steps + 1)
    same = ("job_id", "submit_s", "priority", "user", "group", "batch_size", "micro_batch_size", "method", "rank")
    same += ("seq_len", "seq_len_p95", "lr", "seed", "num_gpus", "dropout")
    assert [getattr(back, name) for name in same] == [getattr(spec, name) for name in same]
    assert len(data.train) == back.steps * spec.batch_size


def test_steps_are_scaled_and_rounded_up() -> None:
    def steps(total: float, scale: float) -> list[int | None]:
        return [whole_steps(total * scale), train_job(spec_of(total_steps=total * scale), seed=0).steps]

    for total, scale, whole in ((20.0, 1.0, 20), (20.2, 1.0, 21), (100.0, 0.07, 7), (30.0, 0.1, 3), (3.0, 0.01, 1)):
        assert steps(total, scale) == [whole, whole]
    assert train_job(spec_of(num_samples=100, epochs=1.5), seed=0).steps == 19


def test_an_omitted_micro_batch_stays_omitted_and_the_rows_follow_the_loop() -> None:
    spec = spec_of(total_steps=400.0)
    job = train_job(spec, seed=3)
    assert job.micro_batch_size is None
    data = job_data(job, TOKENIZER, vocab_size=259)
    halved = data.bound(4)
    assert data.bound(8).train is data.train
    assert len(halved.train) == len(data.train) == 3200
    assert halved.train.lengths.tolist() != data.train.lengths.tolist()
    asked = job_data(train_job(replace(spec, micro_batch_size=4), seed=3), TOKENIZER, vocab_size=259)
    assert halved.train.lengths.tolist() == asked.train.lengths.tolist()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_gpus": 2}, "num_gpus"),
        ({"mem_bytes": 1 << 30}, "mem_bytes"),
        ({"duration_s": 60.0}, "duration_s"),
        ({"stop_step": 5.0}, "stop_step"),
        ({"method": "mixlora", "target_modules": "qv"}, "target_modules"),
        ({"length_dist": "nope"}, "unknown length distribution"),
    ],
    ids=str,
)
def test_what_cannot_run_live_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_job(spec_of(job_id="odd", **fields), seed=0)
    assert "job odd cannot run live" in str(caught.value) and said in str(caught.value)
