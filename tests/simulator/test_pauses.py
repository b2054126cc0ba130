"""Reviews, pauses and restarts, with hand-computed answers."""

from __future__ import annotations

import pytest

from loramux_policies.views import ClusterView, Plan
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_simulator import simulate

from .scripted import FIDELITIES, Restless, Scripted, Windowed, events, reviews, turnaround
from .workloads import job, sized, trace_of


def test_a_review_comes_when_the_service_is_reached() -> None:
    assert reviews(sized([100.0]), 30.0) == pytest.approx([0.0, 30.0, 100.0])
    # a second job halves the speed from 20 on
    asked = reviews(sized([100.0, 500.0], [0.0, 20.0]), 30.0, speedup_curve="none")
    assert asked == pytest.approx([0.0, 20.0, 40.0, 180.0, 600.0])


def test_a_review_of_a_gang() -> None:
    assert reviews(sized([100.0], num_gpus=2), 30.0, devices="2xl4") == pytest.approx([0.0, 30.0, 100.0])


def test_a_review_survives_changes_of_speed() -> None:
    """Rolled-out rates change with every newcomer.

    What was watched for still comes, and at the right service.
    """
    seen: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        if not seen:
            plan.review_when("j0", 30.0)
        seen.append(view.attained_s("j0") if "j0" in plan.residents(0) and view.device_of("j0") == 0 else -1.0)

    simulate(sized([100.0, 50.0, 50.0], [0.0, 10.0, 15.0]), Windowed(watch), devices="1xl4", ideal=True)
    assert any(level == pytest.approx(30.0, rel=1e-6) for level in seen)


def test_a_review_survives_a_change_of_share() -> None:
    seen: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 0.0:
            plan.review_when("j0", 30.0)
        elif view.now_s == 20.0:
            plan.start("j0", 0, 0.5)
        seen.append(view.now_s)

    simulate(sized([100.0, 500.0], [0.0, 20.0]), Scripted(watch), devices="1xl4", ideal=True, speedup_curve="none")
    # from 20 on two jobs on 1.5 seats, rounded to 2, phi = 1: j0 at a third
    assert any(t == pytest.approx(50.0) for t in seen)


def test_reviews_in_step_fidelity_come_at_the_next_step() -> None:
    asked = reviews(trace_of(job("j0", total_steps=2000.0)), 10.0, fidelity="step")
    assert len(asked) == 3
    assert asked[1] == pytest.approx(10.0, rel=0.1)


# --- pausing and resuming ---


@FIDELITIES
def test_a_pause_and_start_at_one_instant_loses_nothing(fidelity: str) -> None:
    """--ideal: switching is free, and the step under way is credited to the job that leaves."""

    def swap(view: ClusterView, plan: Plan) -> None:
        for resident in view.residents(0):
            plan.pause(resident.job_id)
            plan.start(resident.job_id, 0)

    trace = trace_of(job("j0", total_steps=500.0), *(job(f"k{i}", 0.37 * (i + 1), total_steps=20.0) for i in range(20)))
    plain = simulate(trace, Scripted(), devices="1xl4", ideal=True, fidelity=fidelity)
    swapped = simulate(trace, Scripted(swap), devices="1xl4", ideal=True, fidelity=fidelity)
    assert swapped.summary["preemptions"] >= 20
    assert turnaround(swapped)["j0"] == pytest.approx(turnaround(plain)["j0"], rel=1e-9 if fidelity == "rate" else 0.03)
    assert swapped.summary["steps"] == pytest.approx(plain.summary["steps"], rel=1e-9 if fidelity == "rate" else 0.03)
    assert swapped.jobs["steps_done"].tolist() == plain.jobs["steps_done"].tolist()
    assert (swapped.jobs["paused_time"] == 0.0).all()


def test_a_step_under_way_counts_for_the_paused() -> None:
    """Pausing in the middle of every step must not stop the clock of the work.

    It did: each pause lost its step.
    """

    trace = trace_of(job("j0", total_steps=50.0))
    result = simulate(trace, Restless(0.01, 2.0), devices="1xl4", ideal=True, fidelity="step")
    plain = simulate(trace, "fifo", devices="1xl4", ideal=True, fidelity="step")
    assert result.summary["preemptions"] > 50
    assert turnaround(result)["j0"] == pytest.approx(turnaround(plain)["j0"], rel=0.05)


def test_starting_and_pausing_in_one_plan() -> None:
    def flash(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 0.0:
            for job_id in plan.residents(0):
                plan.pause(job_id)
            plan.review_at(5.0)

    result = simulate(sized([10.0]), Scripted(flash), devices="1xl4", ideal=True, events=True)
    row = result.jobs.iloc[0]
    assert (row["starting_time"], row["finish_time"], row["paused_time"]) == pytest.approx((0.0, 15.0, 5.0))
    assert [e for _, e, _ in events(result)] == ["arrive", "start", "pause", "resume", "finish"]


def test_srtf_by_hand() -> None:
    result = simulate(sized([10.0, 3.0, 1.0], [0.0, 2.0, 3.0]), "srtf", devices="1xl4", ideal=True, max_resident=1)
    assert turnaround(result) == pytest.approx({"j0": 14.0, "j1": 4.0, "j2": 1.0})
    rows = result.jobs.set_index("job_id")
    assert rows["preemptions"].to_dict() == {"j0": 1, "j1": 1, "j2": 0}
    assert rows["paused_time"].to_dict() == pytest.approx({"j0": 4.0, "j1": 1.0, "j2": 0.0})


def test_a_job_that_moves_to_another_type_keeps_its_steps() -> None:
    moved: list[float] = []

    def move(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 0.0:
            plan.review_at(7.0)
        elif not moved:
            moved.append(view.attained_s("j0"))
            plan.pause("j0")
            plan.start("j0", 1)

    trace = trace_of(job("j0", total_steps=1000.0, base_model="llama-7b", batch_size=8))
    models = [CostModel(load_device(name), ideal=True) for name in ("a100-80g", "l4")]
    step_s = [c.solo_step_s * c.accumulation for c in (model.job_cost(trace.jobs[0]) for model in models)]
    result = simulate(trace, Scripted(move), devices="1xa100-80g,1xl4", ideal=True)
    left = 1000.0 - 7.0 / step_s[0]
    assert turnaround(result)["j0"] == pytest.approx(7.0 + left * step_s[1])
    assert result.jobs["steps_done"][0] == pytest.approx(1000.0)
    assert result.jobs["service_s"][0] == pytest.approx(7.0 + left * step_s[1])
    assert result.jobs["solo_time"][0] == pytest.approx(1000.0 * step_s[1])


def test_predicted_finishes_come_true_when_nothing_changes() -> None:
    said: dict[str, float] = {}

    def ask(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 20.0:
            for device in range(2):
                said.update({r.job_id: view.finish_s(r.job_id) for r in view.residents(device)})

    trace = trace_of(
        job("a", 0.0, duration_s=100.0, num_gpus=2), job("b", 0.0, duration_s=100.0), job("c", 20.0, duration_s=1e-3)
    )
    result = simulate(trace, Scripted(ask), devices="2xl4", ideal=True, speedup_curve="none")
    ends = dict(zip(result.jobs["job_id"], result.jobs["finish_time"], strict=True))
    # b shares one device with half of the gang: both at half speed till the end, but for c's
    # instant
    assert said["b"] == pytest.approx(ends["b"], rel=1e-3)
    assert said["a"] == pytest.approx(ends["a"], rel=1e-3)
