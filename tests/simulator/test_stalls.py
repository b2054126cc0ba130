"""A simulation in which nobody gets anywhere ends with a PolicyError.

One that is only slow does not.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import Plan, Policy, PolicyError
from loramux_policies.views import ClusterView
from loramux_simulator import clock, simulate

from ..policies.test_adversaries import SINGLE, play, starting
from .workloads import job, trace_of


def test_never_starting_anything_is_a_stall() -> None:
    with pytest.raises(PolicyError, match=r"villain stalled at .* 5 jobs wait .*j0"):
        play(lambda _, view: view.plan())


def test_leaving_one_job_behind_is_a_stall() -> None:
    def place(_: Any, view: ClusterView) -> Plan:
        plan = view.plan()
        for waiting in view.waiting(9):
            device = next(plan.candidates(waiting.job_id), None)
            if waiting.job_id != "j2" and device is not None:
                plan.start(waiting.job_id, device)
        return plan

    with pytest.raises(PolicyError, match=r"villain stalled at .* 1 jobs wait \(j2\)"):
        play(place)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_reviews_for_ever(fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MOST_FRUITLESS", 50_000)

    class Villain(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            plan.review_at(view.now_s + 1.0)
            return plan

    with pytest.raises(PolicyError, match="Villain stalled"):
        simulate(SINGLE, Villain, devices="1xl4", fidelity=fidelity)


def test_reviews_without_time_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MOST_FRUITLESS", 50_000)

    def place(_: Any, view: ClusterView) -> Plan:
        plan = starting(view)
        for device in range(view.n_devices):
            for resident in view.residents(device):
                plan.review_when(resident.job_id, 0.0)
        return plan

    with pytest.raises(PolicyError, match="villain stalled"):
        play(place)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_pausing_and_starting_for_ever(fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resume costs more than the review leaves: nobody ever gets anywhere."""
    monkeypatch.setattr(clock, "MOST_FRUITLESS", 3_000)

    class Villain(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                plan.pause(resident.job_id)
            for waiting in [*view.residents(0), *view.waiting(1)][:1]:
                plan.start(waiting.job_id, 0)
            plan.review_at(view.now_s + 1e-4)
            return plan

    with pytest.raises(PolicyError, match="Villain stalled"):
        simulate(SINGLE, Villain, devices="1xl4", fidelity=fidelity)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_pauses_that_give_no_service(fidelity: str) -> None:
    """Time passes and jobs start all the time, but loading takes longer than they are left alone.

    Found out soon.
    """

    class Villain(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                plan.pause(resident.job_id)
            for waiting in view.waiting(1):
                plan.start_first(waiting.job_id)
            plan.review_at(view.now_s + 0.1)
            calls.append(view.now_s)
            return plan

    calls: list[float] = []
    rows = trace_of(*(job(f"j{i}", 100.0 * i, base_model="llama-2-7b", method="mixlora") for i in range(4)))
    with pytest.raises(PolicyError, match="Villain stalled"):
        simulate(rows, Villain, devices="1xa100-80g", fidelity=fidelity)
    assert len(calls) < 100_000


def test_many_pauses_that_give_little_are_no_stall() -> None:
    """Thousands of decisions in which somebody is paused, and all get on."""

    class Restless(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                plan.pause(resident.job_id)
            for waiting in view.waiting(1):
                plan.start_first(waiting.job_id)
            plan.review_at(view.now_s + 0.3)
            return plan

    result = simulate(trace_of(job("a", duration_s=900.0), job("b", duration_s=900.0)), Restless, devices="1xl4")
    assert result.summary["completed"] == 2
    assert result.summary["preemptions"] > 5_000


def test_tiny_reviews_still_end() -> None:
    """Absurd, but it gets there: the work goes on between the reviews."""

    def place(_: Any, view: ClusterView) -> Plan:
        plan = starting(view)
        plan.review_at(view.now_s + 0.25)
        return plan

    result = play(place, ideal=True)
    assert result.summary["completed"] == 5
    assert result.summary["decisions"] > 200
