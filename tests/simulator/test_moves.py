"""Watches for a level of service; jobs that are paused or moved in mid-step.

All by hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import Policy, start_in_order
from loramux_policies.views import ClusterView, Plan
from loramux_simulator import clock, simulate

from .scripted import Scripted, Windowed, events, turnaround
from .workloads import job, sized, trace_of

# --- watches ------------------------------------------------------------------------------------


def first_seen_at(policy: type[Scripted], level_s: float, submits: list[float], **options: Any) -> float:
    """Service of j0 when its policy is first asked at or past a level.

    It asked once for a review there.
    """
    seen: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 0.0:
            plan.review_when("j0", level_s)
        if view.n_waiting == 0 and "j0" in plan.residents(0):
            seen.append(view.attained_s("j0"))

    sizes = [100.0] + [60.0] * (len(submits) - 1)
    simulate(sized(sizes, submits), policy(watch), ideal=True, **({"devices": "1xl4"} | options))
    return min(level for level in seen if level >= level_s * (1.0 - 1e-6))


@pytest.mark.parametrize("submits", [[0.0, 10.0], [0.0, 10.0, 10.0, 12.5], [0.0, 5.0, 29.999999999]])
@pytest.mark.parametrize("policy", [Scripted, Windowed])
def test_watches_survive_newcomers(policy: type[Scripted], submits: list[float]) -> None:
    assert first_seen_at(policy, 30.0, submits) == pytest.approx(30.0, rel=1e-6)


@pytest.mark.parametrize("policy", [Scripted, Windowed])
def test_a_watch_for_what_is_reached_already_is_answered_at_once(policy: type[Scripted]) -> None:
    """Whatever the pace: a windowing one dropped it, and the policy was never asked again."""
    asked: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        asked.append(view.now_s)
        if view.now_s == 20.0 and asked.count(20.0) == 1:
            plan.review_when("j0", view.attained_s("j0"))
            plan.review_when("j0", 5.0)

    simulate(sized([100.0, 50.0], [0.0, 20.0]), policy(watch), devices="1xl4", ideal=True)
    assert asked.count(20.0) == 2


def test_a_watch_on_a_gang_survives_changes_of_speed() -> None:
    """It was a time, reckoned at the speed of the moment.

    Beside a newcomer the review came too early, and only then.
    """
    seen: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        if view.now_s == 0.0:
            plan.review_when("j0", 30.0)
        if "j0" in plan.residents(0) and view.now_s > 10.0:
            seen.append(view.attained_s("j0"))

    trace = trace_of(job("j0", 0.0, duration_s=100.0, num_gpus=2), job("j1", 10.0, duration_s=50.0))
    simulate(trace, Scripted(watch), devices="2xl4", ideal=True, speedup_curve="none")
    assert seen[0] == pytest.approx(30.0, rel=1e-6)


# --- pausing in the last step -------------------------------------------------------------------


@pytest.mark.parametrize("ideal", [True, False])
@pytest.mark.parametrize("steps", [1.0, 5.0])
def test_a_job_paused_in_its_last_step_has_done_it(steps: float, ideal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step runs to its end on the device.

    Whoever is paused in it every time must not start it anew every time.
    """
    monkeypatch.setattr(clock, "MOST_FRUITLESS", 3_000)

    class Nagging(Policy):
        """Pauses j0 a little after each of its starts and resumes it at the next event."""

        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                if resident.job_id == "j0" and resident.enqueued_s < view.now_s:
                    plan.pause("j0")
            start_in_order(view, plan)
            plan.review_at(view.now_s + (0.003 if ideal else 0.03))  # a copy takes 3 ms
            return plan

    trace = trace_of(job("j0", total_steps=steps, batch_size=2), job("other", total_steps=40.0, batch_size=2))
    alone = simulate(trace, "fifo", devices="1xl4", fidelity="step", ideal=ideal)
    result = simulate(trace, Nagging, devices="1xl4", fidelity="step", ideal=ideal, events=True)
    assert result.summary["completed"] == 2
    rows = result.jobs.set_index("job_id")
    assert rows["preemptions"]["j0"] > 0
    assert rows["steps_done"]["j0"] == steps
    assert rows["service_s"]["j0"] == pytest.approx(rows["solo_time"]["j0"], rel=1e-9)
    # switching is free: no time is gained, and what it loses is the steps that begin while it is
    # paused
    if ideal:
        assert 0.8 * turnaround(alone)["j0"] <= turnaround(result)["j0"] <= 3.0 * turnaround(alone)["j0"] + 0.1


def test_a_last_step_ends_when_it_ends_though_its_job_was_paused() -> None:
    """Resumed at once, on whatever device, the job ends with the step, not before."""

    def swap(view: ClusterView, plan: Plan) -> None:
        for resident in view.residents(0):
            if view.now_s > 0.0:
                plan.pause(resident.job_id)
                plan.start(resident.job_id, 1)

    trace = trace_of(job("j0", total_steps=1.0), job("k", 0.01, total_steps=1.0))
    plain = simulate(trace_of(trace.jobs[0]), "fifo", devices="1xl4", fidelity="step", ideal=True)
    swapped = simulate(trace, Scripted(swap), devices="2xl4", fidelity="step", ideal=True, events=True)
    assert turnaround(plain)["j0"] > 0.01
    assert turnaround(swapped)["j0"] == pytest.approx(turnaround(plain)["j0"], rel=1e-9)
    assert [e for _, e, who in events(swapped) if who == "j0"] == ["arrive", "start", "pause", "resume", "finish"]


def test_moving_from_device_to_device_gains_nothing() -> None:
    """A job that is paused in a step and moved goes on there when the step ends, not beside it."""

    class Mover(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            start_in_order(view, plan)
            for device in range(2):
                for resident in view.residents(device):
                    plan.pause(resident.job_id)
                    plan.start(resident.job_id, 1 - device)
            plan.review_at(view.now_s + 0.01)
            return plan

    trace = trace_of(job("j0", total_steps=50.0))
    plain = simulate(trace, "fifo", devices="2xl4", fidelity="step", ideal=True)
    moved = simulate(trace, Mover, devices="2xl4", fidelity="step", ideal=True)
    assert moved.summary["preemptions"] > 50
    assert turnaround(moved)["j0"] == pytest.approx(turnaround(plain)["j0"], rel=1e-6)
