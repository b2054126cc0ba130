"""Corners of the engines, each with a hand-computed answer.

Predictions, warm-up, ties, tiny jobs.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies.loop.job import Job
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.views import ClusterView, Plan
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_simulator import simulate

from .scripted import FIDELITIES, Scripted, events, turnaround
from .workloads import job, sized, trace_of


def test_durations_refer_to_the_reference_device() -> None:
    trace = trace_of(
        job("a", 0.0, duration_s=100.0, base_model="llama-7b"),
        job("b", 0.0, duration_s=100.0, base_model="llama-7b", ref_gpu="h100-80g"),
    )
    result = simulate(trace, "fifo", devices="2xl4", ideal=True, max_resident=1)
    solo = [CostModel(load_device(d), ideal=True).job_cost(trace.jobs[0]).solo_step_s for d in ("l4", "h100-80g")]
    assert turnaround(result) == pytest.approx({"a": 100.0, "b": 100.0 * solo[0] / solo[1]})
    moved = simulate(trace, "fifo", devices="1xh100-80g,1xl4", ideal=True, max_resident=1)
    # the first device of the run is what `a` refers to now, and both go where they can
    assert sorted(moved.jobs["solo_time"] / [100.0, 100.0]) == pytest.approx([1.0, solo[0] / solo[1]])


@FIDELITIES
def test_jobs_shorter_than_a_step(fidelity: str) -> None:
    trace = trace_of(
        job("a", 0.0, total_steps=1e-3), job("b", 0.0, duration_s=1e-9), job("c", 0.0, total_steps=1.0, stop_step=1e-6)
    )
    result = simulate(trace, "fifo", devices="1xl4", fidelity=fidelity, ideal=True)
    rows = result.jobs.set_index("job_id")
    assert (rows["final_state"] == "COMPLETED").all()
    assert rows["steps_done"]["a"] == pytest.approx(1e-3)
    assert rows["steps_done"]["c"] == pytest.approx(1e-6)
    assert rows["service_s"].to_dict() == pytest.approx(rows["solo_time"].to_dict())


def test_tiny_jobs_late_in_a_long_trace() -> None:
    """At 1e9 s the clock's grain is 1e-7 s; jobs of 1e-9 s must still end, in order."""
    trace = sized([1e-9] * 50, [1e9 + i * 1e-3 for i in range(50)])
    for policy in ("fifo", "srtf", "las", "ps"):
        result = simulate(trace, policy, devices="1xl4", ideal=True, max_resident=1)
        assert result.summary["completed"] == 50
        assert (result.jobs["finish_time"] >= result.jobs["starting_time"]).all()


def test_prediction_errors_change_the_order_only() -> None:
    trace = sized([float(s) for s in (50, 10, 30, 20, 40, 15, 25, 35)])
    options: dict[str, Any] = {"devices": "1xl4", "max_resident": 1, "ideal": False}
    exact = simulate(trace, "sjf", **options)
    blurred = simulate(trace, "sjf", prediction_error=1.5, **options)
    assert turnaround(blurred) != pytest.approx(turnaround(exact))
    assert blurred.jobs["solo_time"].tolist() == exact.jobs["solo_time"].tolist()
    assert blurred.jobs["service_s"].tolist() == pytest.approx(exact.jobs["service_s"].tolist())
    fifo = [turnaround(simulate(trace, "fifo", prediction_error=e, **options)) for e in (0.0, 1.5)]
    assert fifo[0] == fifo[1]
    ideal = [
        turnaround(simulate(trace, "sjf", devices="1xl4", max_resident=1, ideal=True, prediction_error=e))
        for e in (0.0, 2.0)
    ]
    assert ideal[0] == ideal[1]  # --ideal: exact predictions


def test_a_job_that_outlives_its_prediction_has_nothing_left() -> None:
    seen: list[tuple[float, list[float]]] = []

    def ask(view: ClusterView, plan: Plan) -> None:
        if "j0" not in plan.residents(0):
            return
        seen.append((view.remaining_s("j0"), [r.remaining_s for r in view.preemptible("remaining_s", above=-1.0)]))
        if view.now_s < 5000.0:
            plan.review_at(view.now_s + 500.0)

    trace = sized([10000.0])
    for seed in range(4):
        simulate(trace, Scripted(ask), devices="1xl4", prediction_error=3.0, seed=seed)
    assert min(left for left, _ in seen) == 0.0
    assert all(left >= 0.0 and all(x >= 0.0 for x in many) for left, many in seen)
    assert any(left == 0.0 and many for left, many in seen)


def test_warmup_leaves_out_the_first_jobs() -> None:
    trace = sized([10.0] * 10, [float(i) for i in range(10)])
    whole = simulate(trace, "fifo", devices="1xl4", ideal=True, max_resident=1)
    later = simulate(trace, "fifo", devices="1xl4", ideal=True, max_resident=1, warmup=0.5)
    assert len(later.jobs) == 10
    assert later.summary["jobs"] == 5
    assert later.summary["turnaround_s"]["mean"] == pytest.approx(sum(10.0 * (i + 1) - i for i in range(5, 10)) / 5)
    assert whole.summary["turnaround_s"]["max"] == later.summary["turnaround_s"]["max"]


@FIDELITIES
@pytest.mark.parametrize("policy", ["fifo", "srtf"])
def test_devices_count_from_the_end_of_the_warm_up(policy: str, fidelity: str) -> None:
    """Half idle from 600 s on.

    What warm-up jobs do there counts, and what was done before does not.
    """
    trace = sized([100.0] * 5 + [40.0] * 5, [0.0] * 5 + [600.0 + 80.0 * i for i in range(5)], seq_len=300.0)
    options: dict[str, Any] = {"devices": "1xl4", "max_resident": 1, "ideal": True, "fidelity": fidelity}
    whole, later = (simulate(trace, policy, warmup=warmup, **options).summary for warmup in (0.0, 0.5))
    assert later["window_s"] == pytest.approx(later["makespan_s"]) == pytest.approx(360.0, rel=0.03)
    assert later["gpu_busy_fraction"] == pytest.approx(200.0 / 360.0, rel=0.05)
    assert whole["gpu_busy_fraction"] == pytest.approx(700.0 / 960.0, rel=0.05)
    assert later["steps"] == pytest.approx(whole["steps"] * 2 / 7, rel=0.05)
    assert later["effective_tokens_per_s"] / whole["effective_tokens_per_s"] == pytest.approx(
        200 / 360 / (700 / 960), rel=0.05
    )


@pytest.mark.parametrize("policy", ["fifo", "las", "exclusive"])
@pytest.mark.parametrize("warmup", [0.3, 0.9])
def test_no_device_is_busier_or_fuller_than_it_can_be(policy: str, warmup: float) -> None:
    trace = trace_of(
        *(job(f"j{i}", 3.0 * i, duration_s=60.0, seq_len=300.0, base_model="llama-2-7b") for i in range(20))
    )
    result = simulate(trace, policy, devices="2xa100-40g", warmup=warmup).summary
    assert 0.5 < result["gpu_busy_fraction"] <= 1.0
    assert 0.0 < result["memory_mean_bytes"] <= result["memory_peak_bytes"] <= result["memory_capacity_bytes"]


def test_a_failure_that_ends_last_is_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The makespan ends with the last job completed; the device was busy beyond it."""
    finish = Scheduler.finish

    def fails(loop: Scheduler, job: Job) -> None:
        if job.job_id == "b":
            loop.fail(job, "fail", "made to fail")
        else:
            finish(loop, job)

    monkeypatch.setattr(Scheduler, "finish", fails)
    trace = trace_of(job("a", duration_s=10.0), job("b", duration_s=30.0))
    result = simulate(trace, "exclusive", devices="1xl4").summary
    assert (result["completed"], result["failed"]) == (1, 1)
    assert result["window_s"] > result["makespan_s"]
    assert result["gpu_busy_fraction"] <= 1.0


# --- ties ---


@pytest.mark.parametrize("policy", ["fifo", "sjf", "psjf", "srtf", "priority", "best-fit", "aspen"])
def test_ties_go_by_id(policy: str) -> None:
    trace = trace_of(*(job(name, 0.0, duration_s=10.0) for name in ("c", "a", "d", "b")))
    result = simulate(trace, policy, devices="1xl4", ideal=True, max_resident=1)
    assert turnaround(result) == pytest.approx({"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0})


def test_equal_jobs_end_together() -> None:
    trace = sized([10.0] * 6)
    result = simulate(trace, "ps", devices="1xl4", ideal=True, speedup_curve="none", events=True)
    assert result.jobs["finish_time"].tolist() == pytest.approx([60.0] * 6)
    ended = [job_id for _, _, job_id in events(result, "finish")]
    assert ended == sorted(ended)


def test_an_arrival_at_the_moment_of_an_end() -> None:
    """One decision sees both: nobody is preempted for a seat that is just becoming free."""
    result = simulate(sized([10.0, 5.0], [0.0, 10.0]), "srtf", devices="1xl4", ideal=True, max_resident=1)
    assert turnaround(result) == pytest.approx({"j0": 10.0, "j1": 5.0})
    assert result.summary["preemptions"] == 0


def test_las_shares_one_seat_exactly() -> None:
    """Foreground-background by hand: j1 catches up with j0's 4 s at 8, then they share."""
    result = simulate(sized([6.0, 6.0], [0.0, 4.0]), "las", devices="1xl4", ideal=True, max_resident=1)
    assert turnaround(result) == pytest.approx({"j0": 12.0, "j1": 8.0})


def test_las_with_two_seats_and_three_jobs() -> None:
    """Three tied jobs on two seats each get 2/3; with phi = 2 for two seats all end at 15."""
    result = simulate(sized([10.0] * 3), "las", devices="1xl4", ideal=True, max_resident=2, speedup_curve="free")
    assert turnaround(result) == pytest.approx({"j0": 15.0, "j1": 15.0, "j2": 15.0})


def test_the_default_fuse_halves_what_does_not_fit() -> None:
    trace = trace_of(
        job("a", base_model="tinyllama-1.1b", method="mixlora", batch_size=8, seq_len=530.0, total_steps=100.0)
    )
    for seed in (3, 6):
        assert (
            simulate(trace, "aspen", devices="1xl4", fusion="padded", fidelity="step", seed=seed).summary["completed"]
            == 1
        )
    for seed in (3, 6):
        assert (
            simulate(trace, "fifo", devices="1xl4", fusion="padded", fidelity="step", seed=seed).summary["completed"]
            == 1
        )
