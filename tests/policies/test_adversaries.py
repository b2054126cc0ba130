"""Policies that misbehave end the run with a PolicyError that has their name.

Never a hang, a traceback or a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from loramux_policies import (
    DeviceView,
    Entry,
    FusedStep,
    Order,
    Plan,
    Policy,
    PolicyError,
    start_in_order,
)
from loramux_policies.views import ClusterView
from loramux_simulator import simulate

from ..simulator.workloads import GIB, job, trace_of

TRACE = trace_of(
    *(job(f"j{i}", 2.0 * i, duration_s=30.0, mem_bytes=9 * GIB) for i in range(4)),
    job("wide", 1.0, duration_s=20.0, mem_bytes=GIB, num_gpus=2),
)
SINGLE = trace_of(*(job(f"j{i}", 2.0 * i, total_steps=60.0, mem_bytes=5 * GIB) for i in range(4)))


def starting(view: ClusterView) -> Plan:
    plan = view.plan()
    start_in_order(view, plan)
    return plan


def play(place: Callable[[Any, ClusterView], Any], **options: Any) -> Any:
    """Run a policy with this `place`."""
    cls: type[Policy] = type("Villain", (Policy,), {"place": place, "name": "villain"})
    return simulate(TRACE, cls, devices="2xl4", **options)


def raises(_: Any, view: ClusterView) -> Plan:
    raise KeyError("sorry")


def over_commits(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    for waiting in view.waiting(9):
        plan.start(waiting.job_id, 0)
    return plan


def unknown_job(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    plan.start("nobody", 0)
    return plan


def twice(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.start("j0", 0)
    plan.start("j0", 1)
    return plan


def wrong_device(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.start(view.waiting(1)[0].job_id, 2)
    return plan


def negative_device(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.start(view.waiting(1)[0].job_id, -1)
    return plan


def no_plan(_: Any, view: ClusterView) -> None:
    return None


def others_plan(_: Any, view: ClusterView) -> Any:
    return view.snapshot().plan()


def pauses_waiting(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.pause(view.waiting(1)[0].job_id)
    return plan


def rejects_running(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    plan.reject("j0", "no", 1.0, 0.0)
    return plan


def starts_rejected(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.reject("j0", "no", 1.0, 0.0)
    plan.start("j0", 0)
    return plan


def review_now(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    plan.review_at(view.now_s)
    return plan


def review_never(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    plan.review_at(float("inf"))
    return plan


def review_nan(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    plan.review_at(float("nan"))
    return plan


def no_share(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.start("j0", 0, 0.0)
    return plan


def bad_rule(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    next(plan.candidates("j0", "best"))  # type: ignore[arg-type]
    return plan


def bad_metric(_: Any, view: ClusterView) -> Plan:
    plan = starting(view)
    list(view.preemptible("shoe_size", 0.0))  # type: ignore[arg-type]
    return plan


def ghost_residents(_: Any, view: ClusterView) -> Plan:
    view.residents(7)
    return view.plan()


def watches_waiting(_: Any, view: ClusterView) -> Plan:
    plan = view.plan()
    plan.review_when("j0", 5.0)
    return plan


PLACES = [
    raises, over_commits, unknown_job, twice, wrong_device, negative_device, no_plan, others_plan, pauses_waiting,
    rejects_running, starts_rejected, review_now, review_never, review_nan, no_share, bad_rule, bad_metric,
    ghost_residents, watches_waiting,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_bad_plans(place: Callable[[Any, ClusterView], Any]) -> None:
    with pytest.raises(PolicyError, match="villain"):
        play(place)


def test_starting_where_it_is_changes_nothing() -> None:
    """Twice in one plan, or again in a later one: no event, and nothing of it in the results."""

    def place(_: Any, view: ClusterView) -> Plan:
        plan = starting(view)
        for job_id in plan.residents(0):
            if job_id != "wide":  # a gang of both devices
                plan.start(job_id, 0)
                plan.start(job_id, 0)
        return plan

    plain, again = (play(way, ideal=True, events=True) for way in (lambda _, view: starting(view), place))
    assert again.events == plain.events
    assert again.jobs.equals(plain.jobs)


def test_a_plan_returned_twice() -> None:
    class Villain(Policy):
        kept: ClassVar[list[Plan]] = []

        def place(self, view: ClusterView) -> Plan:
            self.kept.append(starting(view))
            return self.kept[0]

    with pytest.raises(PolicyError, match="Villain"):
        simulate(TRACE, Villain, devices="2xl4")


def test_starting_twice_takes_one_seat() -> None:
    class Villain(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = starting(view)
            for job_id in plan.residents(0):
                plan.start(job_id, 0)
            return plan

    result = simulate(SINGLE, Villain, devices="1xl4", ideal=True, max_resident=2)
    assert result.summary["completed"] == 4
    assert max(result.timeline["samples"]["n_residents"]) == 2


class Fuser(Policy):
    """Starts everybody; what it fuses is up to the test."""

    name = "fuser"
    answer: ClassVar[Callable[[DeviceView], Any]]

    def place(self, view: ClusterView) -> Plan:
        return starting(view)

    def fuse(self, device: DeviceView) -> FusedStep:
        return type(self).answer(device)  # type: ignore[no-any-return]


def _first(device: DeviceView) -> Entry:
    return Entry(device.ready[0].job_id, device.ready[0].rows)


JUNK: dict[str, Callable[[DeviceView], Any]] = {
    "none": lambda device: None,
    "nobody": lambda device: FusedStep(device.base_model, ()),
    "other-base": lambda device: FusedStep("gpt-9", (_first(device),)),
    "twice": lambda device: FusedStep(device.base_model, (_first(device), _first(device))),
    "stranger": lambda device: FusedStep(device.base_model, (Entry("nobody", 1),)),
    "no-rows": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 0),)),
    "too-many-rows": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 10**9),)),
    "half-a-row": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 1.5),)),  # type: ignore[arg-type]
    "text-rows": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, "1"),)),  # type: ignore[arg-type]
    "no-entries": lambda device: FusedStep(device.base_model, 7),  # type: ignore[arg-type]
    "strings": lambda device: FusedStep(device.base_model, ("j0",)),  # type: ignore[arg-type]
    "unhashable": lambda device: FusedStep(device.base_model, (Entry([], 1),)),  # type: ignore[arg-type]
    "raises": lambda device: 1 / 0,
}


@pytest.mark.parametrize("fidelity", ["rate", "step"])
@pytest.mark.parametrize("junk", JUNK)
def test_junk_from_fuse(junk: str, fidelity: str) -> None:
    policy = type("JunkFuser", (Fuser,), {"answer": staticmethod(JUNK[junk]), "name": "junk"})
    with pytest.raises(PolicyError, match="junk"):
        simulate(SINGLE, policy, devices="1xl4", fidelity=fidelity)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_a_kept_device_view(fidelity: str) -> None:
    kept: list[DeviceView] = []

    def answer(device: DeviceView) -> FusedStep:
        kept.append(device)
        return kept[0].step(kept[0].ready)

    policy = type("Keeper", (Fuser,), {"answer": staticmethod(answer), "name": "keeper"})
    with pytest.raises(PolicyError, match=r"keeper.*StaleViewError"):
        simulate(SINGLE, policy, devices="1xl4", fidelity=fidelity)


@pytest.mark.parametrize(
    "key", [lambda job: 1 / 0, lambda job: (None,) if job.job_id == "j1" else (1,)], ids=["raises", "not-comparable"]
)
def test_an_order_that_raises(key: Callable[[Any], Any]) -> None:
    policy = type("Odd", (Policy,), {"order": Order(key=key), "place": lambda _, view: view.plan(), "name": "odd"})
    with pytest.raises(PolicyError, match="odd"):
        simulate(TRACE, policy, devices="2xl4")
