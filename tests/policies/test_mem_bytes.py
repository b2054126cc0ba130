"""Jobs that say what they need (`mem_bytes`) are charged that, in fused steps too."""

from __future__ import annotations

import pytest

from loramux_simulator import simulate
from loramux_traces.job import JobSpec, Trace


@pytest.mark.parametrize("policy", ["aspen-fifo:k=2", "aspen-minpad:k=2", "lorafusion", "aspen:k=2,residents=4"])
@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_a_device_filled_by_them_is_not_over_committed(policy: str, fidelity: str) -> None:
    """No base is charged beside them: a step adds no activations to a full device."""
    jobs = [
        JobSpec(
            job_id=f"j{i}",
            submit_s=0.0,
            base_model="llama-7b",
            method="lora",
            batch_size=4,
            seq_len=200.0 + 50 * i,
            total_steps=20.0,
            mem_bytes=21_206_000_000,
        )
        for i in range(8)
    ]
    result = simulate(Trace(name="full", jobs=jobs), policy, fidelity=fidelity, fusion="padded")
    assert result.summary["completed"] == 8
    assert result.summary["memory_peak_bytes"] > 0.98 * result.summary["memory_capacity_bytes"]
