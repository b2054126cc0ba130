"""Options that make a simulated run go about it as a live scheduler does."""

from __future__ import annotations

from typing import Any

import pytest

from loramux_simulator import RunResult, simulate
from loramux_traces.errors import UsageError

from .workloads import job, trace_of

BASE = "tinyllama-1.1b"


def run(policy: str = "sjf", **options: Any) -> RunResult:
    """One job; in mid-step a long one and then a short one come for the one other seat."""
    first = job("a", 0.0, base_model=BASE, seq_len=800.0, batch_size=16, total_steps=40.0)
    long = job("b", 0.001, base_model=BASE, seq_len=100.0, total_steps=400.0)
    short = job("c", 0.002, base_model=BASE, seq_len=100.0, total_steps=2.0)
    chosen = {"fidelity": "step", "max_resident": 2, "devices": "1xa100-80g", "events": True} | options
    return simulate(trace_of(first, long, short), policy, **chosen)


def starts(result: RunResult) -> list[str]:
    assert result.events is not None
    return [row["job_id"] for row in result.events if row["event"] == "start"]


def test_what_comes_during_a_step_is_answered_at_its_end() -> None:
    assert starts(run()) == ["a", "b", "c"]
    live = run(live=True)
    assert starts(live) == ["a", "c", "b"]
    assert live.events is not None
    arrived, started = (
        next(r["t_s"] for r in live.events if r["event"] == e and r["job_id"] == "c") for e in ("arrive", "start")
    )
    assert arrived == 0.002 and started > 0.002
    assert live.summary["completed"] == 3


def test_a_live_run_does_not_wait_for_its_base_model() -> None:
    cold, warm = (run("fifo", live=live).jobs.set_index("job_id")["turnaround_time"]["a"] for live in (False, True))
    assert cold - warm > 0.5  # two gigabytes from disk


def test_a_slow_machine_takes_as_much_longer() -> None:
    alone = trace_of(job("a", 0.0, base_model=BASE, total_steps=50.0))
    fast, slow = (
        simulate(alone, "fifo", devices="1xa100-80g", fidelity="step", live=True, step_time_factor=factor)
        for factor in (1.0, 3.0)
    )
    spent = [result.jobs["turnaround_time"][0] for result in (fast, slow)]
    load_s = (3 * spent[0] - spent[1]) / 2
    assert 0 <= load_s < 0.1 * spent[0]  # only the adapter's load is not stretched
    # predictions stay those of the profile
    assert fast.jobs["solo_time"].tolist() == slow.jobs["solo_time"].tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"fidelity": "rate", "live": True},
        {"fidelity": "rate", "step_time_factor": 1.1},
        {"step_time_factor": 0.0},
        {"step_time_factor": float("nan")},
        {"live": True, "devices": "2xa100-80g"},
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"live|step-time-factor"):
        run(**options)
