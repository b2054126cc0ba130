"""Gangs: several devices at once, all or nothing, at the pace of the slowest."""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import create
from loramux_policies.views import ClusterView, Plan
from loramux_simulator import simulate
from loramux_traces.errors import UsageError

from ..policies.test_purity import compare
from .scripted import Scripted, events, turnaround
from .workloads import GIB, job, sized, trace_of


@pytest.mark.parametrize("curve", [None, "none", "free", "linear:0.5,2"])
@pytest.mark.parametrize("policy", ["fifo", "exclusive", "las", "aspen-fifo:k=2", "srtf", "ps"])
def test_a_gang_alone_takes_its_solo_time(policy: str, curve: str | None) -> None:
    trace = sized([100.0], num_gpus=2)
    result = simulate(trace, policy, devices="2xl4", ideal=True, speedup_curve=curve)
    assert turnaround(result)["j0"] == pytest.approx(100.0, rel=1e-9)
    assert result.jobs["service_s"][0] == pytest.approx(100.0, rel=1e-9)
    assert result.jobs["allocated_resources"][0] == "0+1"


def test_a_gang_goes_at_the_pace_of_its_slowest_device() -> None:
    """phi = 1: beside another job on one of its devices it goes at half speed.

    Until that one is done.
    """
    trace = trace_of(job("a", 0.0, duration_s=40.0), job("b-gang", 10.0, duration_s=100.0, num_gpus=2))
    result = simulate(trace, "ps", devices="2xl4", ideal=True, speedup_curve="none")
    # a alone till 10, both at half speed till a's other 30 seconds are done at 70, then the gang's
    # last 70 alone
    assert turnaround(result) == pytest.approx({"a": 70.0, "b-gang": 130.0})


def test_windows_slow_gangs_down_too() -> None:
    def run(gpus: int) -> dict[str, float]:
        trace = trace_of(*(job(f"j{i}", 0.0, duration_s=100.0, num_gpus=gpus) for i in range(4)))
        return turnaround(simulate(trace, "aspen-fifo:k=2", devices=f"{gpus}xl4", ideal=True))

    assert run(2) == pytest.approx(run(1), rel=1e-6)


def test_gangs_start_all_or_nothing() -> None:
    trace = trace_of(
        job("a", 0.0, duration_s=50.0, mem_bytes=20 * GIB),
        job("b-gang", 1.0, duration_s=10.0, mem_bytes=20 * GIB, num_gpus=2),
        job("c", 2.0, duration_s=5.0, mem_bytes=20 * GIB),
    )
    strict = simulate(trace, "fifo", devices="2xl4", ideal=True)
    assert turnaround(strict) == pytest.approx({"a": 50.0, "b-gang": 59.0, "c": 63.0})
    skipping = simulate(trace, "fifo-skip", devices="2xl4", ideal=True)
    assert turnaround(skipping) == pytest.approx({"a": 50.0, "b-gang": 59.0, "c": 5.0})


def test_a_gang_may_get_a_share() -> None:
    def halve(view: ClusterView, plan: Plan) -> None:
        for resident in view.residents(0):
            plan.start(resident.job_id, 0, 0.5)

    trace = trace_of(job("a", 10.0, duration_s=10.0), job("b-gang", 0.0, duration_s=100.0, num_gpus=2))
    result = simulate(trace, Scripted(halve), devices="2xl4", ideal=True, speedup_curve="none")
    assert result.summary["completed"] == 2


def test_a_gang_of_processes_loads_once() -> None:
    """Each of its processes loads a base copy, at the same time."""
    one, two = (
        turnaround(simulate(sized([60.0], num_gpus=n, base_model="llama-7b"), "exclusive", devices="2xa100-80g"))
        for n in (1, 2)
    )
    assert two == pytest.approx(one, rel=1e-9)
    assert one["j0"] > 60.0


@pytest.mark.parametrize(
    ("policy", "options"), [("ps", {"speedup_curve": "none"}), ("fifo", {}), ("separate", {"ideal": False})]
)
def test_tokens_of_a_gang_count_once_per_device(policy: str, options: dict[str, Any]) -> None:
    """In `tokens_done` as in the rate of the run.

    Those are left out that it did not do while a companion was slower.
    """
    trace = trace_of(
        job("a", 0.0, duration_s=40.0, seq_len=300.0), job("b-gang", 10.0, duration_s=100.0, num_gpus=2), job("c", 5.0)
    )
    result = simulate(trace, policy, **({"devices": "2xl4", "ideal": True} | options))
    rows = result.jobs.set_index("job_id")
    one = simulate(trace_of(job("b", 0.0, duration_s=100.0)), policy, **({"devices": "2xl4", "ideal": True} | options))
    assert rows["tokens_done"]["b-gang"] == pytest.approx(2.0 * one.jobs["tokens_done"][0])
    tokens = result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
    assert tokens == pytest.approx(rows["tokens_done"].sum(), rel=1e-6)


def test_steps_of_a_gang_are_those_it_made() -> None:
    """Its free device waits for the busy one: the steps of that time are not made."""
    gang = job("gang", 0.0, total_steps=500.0, micro_batch_size=4, num_gpus=2)
    load = [job(f"b{i}", 0.0, total_steps=200.0, seq_len=900.0, micro_batch_size=4) for i in range(3)]
    alone = simulate(trace_of(gang), "fifo", devices="2xl4", ideal=True).summary["steps"]
    assert alone == pytest.approx(1000.0)
    beside = simulate(trace_of(gang, *load), "best-fit", devices="2xl4", ideal=True)
    # one device is the gang's alone
    assert beside.jobs["allocated_resources"].tolist().count("1") in (0, 3)
    assert beside.summary["steps"] == pytest.approx(1000.0, rel=1e-6)
    # one after the other on a curve of processes: each makes its own
    curve = simulate(trace_of(gang, *load), "ps", devices="2xl4", ideal=True, speedup_curve="none")
    assert curve.summary["steps"] == pytest.approx(1000.0 + 3 * 200.0, rel=1e-6)


def test_gangs_that_no_type_can_hold() -> None:
    trace = trace_of(job("a", 5.0, num_gpus=3), job("b", 0.0))
    result = simulate(trace, "fifo", devices="2xl4,2xa100-40g", events=True)
    assert result.jobs["final_state"].tolist() == ["UNSCHEDULABLE", "COMPLETED"]
    assert "needs 3 devices of one type" in result.jobs["reason"][0]
    assert result.hopeless == 1
    times = [t for t, *_ in events(result)]
    assert times == sorted(times)


def test_dropped_gangs_are_counted() -> None:
    trace = trace_of(job("a", 0.0, num_gpus=2), job("b", 0.0))
    result = simulate(trace, "fifo", devices="2xl4", multi_gpu="drop")
    assert result.summary["jobs"] == 1
    assert any("dropped 1 job" in note for note in result.summary["notes"])
    nobody = simulate(trace_of(job("a", 0.0, num_gpus=2)), "fifo", devices="1xl4", multi_gpu="drop")
    assert nobody.summary["jobs"] == 0
    assert nobody.summary["turnaround_s"]["mean"] is None


def test_gangs_need_rate_fidelity() -> None:
    with pytest.raises(UsageError, match="multi-gpu drop"):
        simulate(trace_of(job("a", 0.0, num_gpus=2)), "fifo", devices="2xl4", fidelity="step")


def test_snapshot_and_facade_agree_beside_gangs() -> None:
    trace = trace_of(
        job("g", 0.0, duration_s=500.0, num_gpus=2), *(job(f"j{i}", 1.0 + i, duration_s=300.0) for i in range(3))
    )
    policy = create("tiresias:thresholds=50/100")
    simulate(trace, policy, devices="2xl4", max_resident=2, on_plan=compare(policy))
