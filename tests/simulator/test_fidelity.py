"""Rate fidelity against step fidelity: mean turnaround over ten draws of all lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loramux_simulator import simulate
from loramux_traces.job import Trace

from .workloads import job, trace_of

DRAWS = range(10)


def many_short_steps(bases: tuple[str, ...] = ("tinyllama-1.1b",), jobs: int = 12) -> Trace:
    """Jobs of 100 to 300 optimizer steps with several methods, lengths and batch sizes.

    All fit a device with room to spare.
    """
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(5.0, jobs))
    return trace_of(
        *(
            job(
                f"j{i:02}",
                float(arrivals[i]),
                base_model=str(rng.choice(bases)),
                method=str(rng.choice(["lora", "mixlora"])),
                batch_size=int(rng.choice([2, 4])),
                seq_len=float(rng.choice([60.0, 200.0, 400.0])),
                rank=int(rng.choice([8, 32])),
                priority=int(rng.integers(0, 2)),
                total_steps=float(rng.integers(100, 300)),
            )
            for i in range(jobs)
        )
    )


def means(trace: Trace, policy: str, **options: Any) -> tuple[float, float, float]:
    """Mean turnaround in rate fidelity, in step fidelity, and the standard error of the latter.

    Rate never draws lengths.
    """
    chosen = {"devices": "1xa100-40g", "timeline": False} | options
    rate = simulate(trace, policy, **chosen)
    steps = [simulate(trace, policy, fidelity="step", seed=seed, **chosen) for seed in DRAWS]
    for run in (rate, *steps):
        assert run.summary["completed"] == len(trace)
    values = [run.summary["turnaround_s"]["mean"] for run in steps]
    return (
        rate.summary["turnaround_s"]["mean"],
        float(np.mean(values)),
        float(np.std(values, ddof=1)) / len(values) ** 0.5,
    )


CASES: list[tuple[str, dict[str, Any]]] = [
    ("fifo", {}),
    ("aspen", {}),
    ("aspen", {"max_resident": 3}),
    ("fifo", {"max_resident": 2}),
    ("exclusive", {}),
    ("fifo", {"devices": "2xl4"}),
    ("aspen", {"ideal": True}),
]


@pytest.mark.parametrize("fusion", ["packed", "padded"])
@pytest.mark.parametrize(("policy", "options"), CASES, ids=lambda value: str(value))
def test_within_two_percent(policy: str, options: dict[str, Any], fusion: str) -> None:
    rate, step, _ = means(many_short_steps(), policy, fusion=fusion, **options)
    assert rate == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_two_bases_take_turns_in_both(fusion: str) -> None:
    trace = many_short_steps(("tinyllama-1.1b", "smollm2-135m"))
    rate, step, _ = means(trace, "fifo", fusion=fusion)
    assert rate == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("fusion", ["packed", "padded"])
@pytest.mark.parametrize(
    "policy",
    [
        "aspen-minpad:k=2,residents=6",
        "aspen-fifo:k=2,residents=6",
        "aspen:k=2,residents=6",
        "lorafusion:k=2,residents=6",
    ],
)
def test_rolled_out_rates_within_five_percent(policy: str, fusion: str) -> None:
    rate, step, _ = means(many_short_steps(), policy, fusion=fusion)
    assert rate == pytest.approx(step, rel=0.05)


@pytest.mark.parametrize("fusion", ["packed", "padded"])
@pytest.mark.parametrize(
    "options", [{}, {"ideal": True}, {"max_resident": 2}, {"devices": "1xa100-80g"}, {"devices": "2xl4"}], ids=str
)
def test_separate_processes_within_two_percent(options: dict[str, Any], fusion: str) -> None:
    """A process that loads takes its turns, and nobody else's, in both."""
    rate, step, _ = means(many_short_steps(), "separate", fusion=fusion, **options)
    assert rate == pytest.approx(step, rel=0.02)


def test_a_loading_process_holds_up_nobody() -> None:
    """Each job by itself.

    The first would lose the second's loading (4.5 s) if that stalled the device.
    """
    trace = trace_of(
        job("a", duration_s=40.0, base_model="llama-2-7b", seq_len=60.0),
        job("b", 30.0, duration_s=40.0, base_model="llama-2-7b", seq_len=200.0),
    )
    rate, step = (simulate(trace, "separate", devices="1xa100-80g", fidelity=f).jobs for f in ("rate", "step"))
    assert step["turnaround_time"].tolist() == pytest.approx(rate["turnaround_time"].tolist(), rel=0.02)


def test_rate_fidelity_draws_no_lengths() -> None:
    trace = many_short_steps()
    runs = [simulate(trace, "aspen", devices="1xa100-40g", seed=seed).jobs for seed in (0, 7)]
    assert runs[0]["turnaround_time"].tolist() == runs[1]["turnaround_time"].tolist()


def test_roll_outs_are_said_in_the_notes() -> None:
    trace = many_short_steps()
    windowed = simulate(trace, "aspen-fifo:k=2,residents=6", devices="1xa100-40g")
    assert any("roll-out" in note for note in windowed.summary["notes"])
    assert simulate(trace, "fifo", devices="1xa100-40g").summary["notes"] == []


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_one_job_alone_takes_its_solo_time(fusion: str) -> None:
    """Rate: exactly. Step: within the spread of its lengths (about 600 draws of 4 rows)."""
    trace = trace_of(job("only", 3.0, total_steps=600.0, base_model="tinyllama-1.1b", seq_len=400.0))
    rate = simulate(trace, "fifo", devices="1xl4", fusion=fusion, ideal=True).jobs
    assert rate["turnaround_time"][0] == pytest.approx(rate["solo_time"][0], rel=1e-12)
    step = simulate(trace, "fifo", devices="1xl4", fusion=fusion, ideal=True, fidelity="step").jobs
    assert step["turnaround_time"][0] == pytest.approx(rate["solo_time"][0], rel=0.03)
    assert step["service_s"][0] == pytest.approx(step["solo_time"][0], rel=1e-9)


# --- jobs near a device's capacity --------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_a_job_near_capacity_ends_in_both(fusion: str) -> None:
    """Its longest rows would not fit the device.

    They are truncated to what it was admitted with, not tried for ever.

    Seed 2 draws a row of 5,500 tokens and more, of which the device holds 5,300.
    """
    trace = trace_of(job("j0", base_model="tinyllama-1.1b", method="mixlora", seq_len=1000.0, total_steps=600.0))
    # asserts that every run completes
    rate, step, _ = means(trace, "aspen", devices="1xl4", fusion=fusion)
    assert rate == pytest.approx(step, rel=0.02)
    assert simulate(trace, "aspen", devices="1xl4", fusion=fusion, fidelity="step", seed=2).summary["oom_events"] == 0


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_any_row_fits_beside_other_residents(fusion: str) -> None:
    """Another base and other adapters on the device leave less than the empty device has.

    Admission counted them.
    """
    trace = trace_of(
        job("j0", base_model="tinyllama-1.1b", method="mixlora", seq_len=1000.0, total_steps=600.0),
        job("b", base_model="smollm2-135m", seq_len=60.0, total_steps=9000.0),
        job("c", base_model="tinyllama-1.1b", method="mixlora", seq_len=60.0, rank=64, total_steps=9000.0),
    )
    for seed in (1, 2):
        step = simulate(trace, "aspen", devices="1xl4", fusion=fusion, fidelity="step", seed=seed)
        assert step.summary["completed"] == 3
        assert step.summary["oom_events"] == 0


def test_processes_share_time_not_steps() -> None:
    """One's steps are four times as long as the other's.

    The device gives each half of its time, not every other step.
    """
    trace = trace_of(
        job("a", duration_s=60.0, seq_len=60.0),
        job("b", duration_s=60.0, base_model="tinyllama-1.1b", seq_len=900.0),
    )
    rate, step = (simulate(trace, "separate", devices="1xa100-80g", fidelity=f).jobs for f in ("rate", "step"))
    assert step["turnaround_time"].tolist() == pytest.approx(rate["turnaround_time"].tolist(), rel=0.02)
