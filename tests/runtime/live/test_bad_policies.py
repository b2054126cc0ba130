"""Policies that fail in every way and at every time.

The scheduler names them and the jobs end as if nothing were.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from loramux_policies import Policy, register
from loramux_policies.errors import PolicyError
from loramux_policies.registry import _known
from loramux_policies.views import ClusterView, DeviceView, Entry, FusedStep, JobView, Order, Plan
from loramux_runtime.live import policy_guard
from loramux_runtime.live.state.marker import Marker, read_marker
from loramux_runtime.live.state.store import Store
from loramux_traces.errors import StateError, UsageError

from .asking import Ask, answers, at_steps, states
from .serving import curves, first, jobs, play, submit

Place = Callable[[ClusterView], Any]
Fuse = Callable[[DeviceView], Any]


def good(view: ClusterView) -> Plan:
    """Start whoever fits."""
    plan = view.plan()
    for job in view.waiting(view.n_waiting):
        plan.start_first(job.job_id)
    return plan


def raising(error: BaseException) -> Callable[[Any], Any]:
    def bad(_: Any) -> Any:
        raise error

    return bad


def deep(view: Any) -> Any:
    return deep(view)


def acting(act: Callable[[ClusterView, Plan], object]) -> Place:
    """A plan after which `act` has had its way."""

    def place(view: ClusterView) -> Plan:
        plan = view.plan()
        act(view, plan)
        return plan

    return place


def over_commit(view: ClusterView, plan: Plan) -> None:
    """All at once, whether or not they fit (there is a seat for one)."""
    for job in view.waiting(view.n_waiting):
        plan.start(job.job_id, 0)
    for job in view.waiting(view.n_waiting):
        plan.start(job.job_id, 0)
    plan.start(view.waiting(1)[0].job_id, 1)


def of_another_view(view: ClusterView) -> Plan:
    other = view.snapshot().plan()
    return other


KEPT: list[Any] = []


def stale(view: ClusterView) -> Any:
    """The plan of an older view."""
    KEPT.append(view.plan())
    return KEPT[0] if len(KEPT) > 1 else good(view)


def start_and_pause(view: ClusterView) -> Plan:
    """Round and round without a step."""
    plan = view.plan()
    residents = list(view.residents(0))
    for job in residents:
        plan.pause(job.job_id)
    if not residents:
        for job in view.waiting(1):
            plan.start(job.job_id, 0)
    plan.review_at(view.now_s)
    return plan


PLACES: dict[str, Place] = {
    "raises ValueError": raising(ValueError("no")),
    "raises KeyError": raising(KeyError("x")),
    "raises MemoryError": raising(MemoryError()),
    "raises AssertionError": raising(AssertionError()),
    "raises NotImplementedError": raising(NotImplementedError()),
    "raises StopIteration": raising(StopIteration()),
    "raises GeneratorExit": raising(GeneratorExit()),
    "raises SystemExit 0": raising(SystemExit(0)),
    "raises SystemExit 3": raising(SystemExit(3)),
    "raises UsageError": raising(UsageError("no")),
    "raises StateError": raising(StateError("no")),
    "raises PolicyError": raising(PolicyError("no")),
    "raises BaseException": raising(BaseException("no")),
    "never ends calling itself": deep,
    "answers None": lambda _: None,
    "answers a list": lambda _: [],
    "answers itself": lambda view: view,
    "answers a look-alike": lambda _: SimpleNamespace(actions=[], reviews=[], watches=[], fleet=None),
    "answers a snapshot's plan": of_another_view,
    "answers an old plan": stale,
    "starts a stranger": acting(lambda view, plan: plan.start("nobody", 0)),
    "starts nothing by name": acting(lambda view, plan: plan.start("", 0)),
    "starts a number": acting(lambda view, plan: plan.start(7, 0)),  # type: ignore[arg-type]
    "starts twice": acting(lambda view, plan: [plan.start(view.waiting(1)[0].job_id, d) for d in (0, 1)]),
    "starts on device -2": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, -2)),
    "starts on device 99": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, 99)),
    "starts with share 0": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, 0, 0.0)),
    "starts with share -1": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, 0, -1.0)),
    "starts with share nan": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, 0, float("nan"))),
    "starts with share 5": acting(lambda view, plan: plan.start(view.waiting(1)[0].job_id, 0, 5.0)),
    "over-commits": acting(over_commit),
    "pauses a stranger": acting(lambda view, plan: plan.pause("nobody")),
    "pauses who waits": acting(lambda view, plan: plan.pause(view.waiting(1)[0].job_id)),
    "rejects a stranger": acting(lambda view, plan: plan.reject("nobody", "no", 1.0, 0.0)),
    "reviews yesterday": acting(lambda view, plan: plan.review_at(-1.0)),
    "reviews nan": acting(lambda view, plan: plan.review_at(float("nan"))),
    "starts nothing": acting(lambda view, plan: None),
    "only reviews": acting(lambda view, plan: plan.review_at(view.now_s + 0.001)),
    "starts and pauses": start_and_pause,
    "changes the view": acting(lambda view, plan: setattr(view.waiting(1)[0], "priority", 9)),
    "unknown rule": acting(lambda view, plan: list(plan.candidates(view.waiting(1)[0].job_id, "worst"))),  # type: ignore[arg-type]
}


def step_of(*entries: Any) -> Fuse:
    return lambda device: FusedStep(device.base_model, tuple(entries))


FUSES: dict[str, Fuse] = {
    "fuse raises ValueError": raising(ValueError("no")),
    "fuse raises SystemExit": raising(SystemExit(1)),
    "fuse raises StateError": raising(StateError("no")),
    "fuse never ends": deep,
    "fuse answers None": lambda _: None,
    "fuse answers nobody": step_of(),
    "fuse answers a stranger": step_of(Entry("nobody", 1)),
    "fuse answers a tuple": step_of(("a",)),
    "fuse answers words": lambda _: "all of them",
    "fuse twice the same": lambda device: FusedStep(
        device.base_model, tuple(Entry(device.ready[0].job_id, 1) for _ in range(2))
    ),
    "fuse no rows": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 0),)),
    "fuse rows below zero": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, -3),)),
    "fuse too many rows": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 10**6),)),
    "fuse half a row": lambda device: FusedStep(device.base_model, (Entry(device.ready[0].job_id, 0.5),)),  # type: ignore[arg-type]
    "fuse another base": lambda device: FusedStep("other", (Entry(device.ready[0].job_id, 1),)),
}


def broken_key(job: JobView) -> tuple[Any, ...]:
    raise ZeroDivisionError("order")


def odd_key(job: JobView) -> tuple[Any, ...]:
    return (object(),)


class Bad(Policy):
    """Good for so many calls, and then not."""

    name = "bad"

    def __init__(self, place: Place = good, fuse: Fuse | None = None, after: int = 0) -> None:
        self._place, self._fuse, self._left = place, fuse, after

    def place(self, view: ClusterView) -> Plan:
        if self._fuse is None and self._left <= 0:
            found: Plan = self._place(view)
            return found
        self._left -= 1
        return good(view)

    def fuse(self, device: DeviceView) -> FusedStep:
        if self._fuse is not None:
            self._left -= 1
            if self._left < 0:
                found: FusedStep = self._fuse(device)
                return found
        return super().fuse(device)


CASES: dict[str, tuple[Place, Fuse | None, int]] = {
    **{name: (place, None, 0) for name, place in PLACES.items()},
    **{f"{name}, later": (place, None, 2) for name, place in list(PLACES.items())[:19]},
    **{name: (good, fuse, 0) for name, fuse in FUSES.items()},
    **{f"{name}, later": (good, fuse, 3) for name, fuse in FUSES.items()},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    store = submit(folder / "state", jobs(folder, 3, steps=2))
    assert play(store, "fifo").failed == 0
    return curves(store)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.endswith(", later") else name for name in CASES]
)
def test_jobs_end_whatever_the_policy_does(
    name: str, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_guard, "STALL_S", 0.2)
    KEPT.clear()
    place, fuse, after = CASES[name]
    said: list[str] = []
    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=2))
    depth = sys.getrecursionlimit()
    outcome = play(store, Bad(place, fuse, after), warn=said.append)
    assert sys.getrecursionlimit() == depth
    assert outcome.failed == 0
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}
    assert curves(store) == undisturbed
    told = [event for event in store.events() if event["event"] == "policy-error"]
    if told:  # some are harmless: a view cannot be changed for anybody else
        assert "bad" in told[0]["detail"] and any("going on under fifo" in text for text in said)


@pytest.mark.parametrize("key", [broken_key, odd_key])
def test_an_order_that_fails(key: Callable[[JobView], Any], tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    class Disorder(Bad):
        name = "disorder"
        order = Order(key=key)

    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=2))
    assert play(store, Disorder()).failed == 0
    assert curves(store) == undisturbed


def test_most_of_them_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases above are no test if nothing is ever found wrong."""
    monkeypatch.setattr(policy_guard, "STALL_S", 0.2)
    noticed = 0
    for number, (place, fuse, after) in enumerate(list(CASES.values())[::15]):
        KEPT.clear()
        store = submit(tmp_path / f"state{number}", jobs(tmp_path, 3, steps=2))
        play(store, Bad(place, fuse, after))
        noticed += any(event["event"] == "policy-error" for event in store.events())
    assert noticed >= len(list(CASES.values())[::15]) - 1


def test_exit_instead_of_fallback(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=2))
    with pytest.raises(PolicyError, match="bad"):
        play(store, Bad(raising(ValueError("no")), None, 1), on_policy_error="exit")
    # and nothing is lost: the next scheduler ends what this one began
    assert play(store, "fifo").failed == 0
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}


def test_a_policy_that_hangs_is_replaced(tmp_path: Path) -> None:
    """Killed while it decided: the next process goes on under fifo."""
    store = submit(tmp_path / "state", jobs(tmp_path, 2, steps=2))
    marker = Marker(tmp_path / "state")
    marker.set("decide")
    marker.close()
    store.set_facts(hung_in_decide=True)
    play(store, "aspen")
    assert any("killed while it decided" in event.get("detail", "") for event in store.events())
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}
    store = Store(tmp_path / "state")
    assert store.fact("hung_in_decide") is False


def test_a_hang_ends_the_scheduler_where_that_is_asked_for(tmp_path: Path) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 1, steps=2))
    marker = Marker(store.folder)
    marker.set("decide")
    marker.close()
    store.set_facts(hung_in_decide=True)
    with pytest.raises(PolicyError, match="killed while it decided"):
        play(store, "aspen", on_policy_error="exit")
    play(store, "aspen", on_policy_error="exit")  # the next one is not told of it again
    assert states(store) == {"job00": "COMPLETED"}


def test_a_second_ask_is_the_policys(tmp_path: Path) -> None:
    """A policy that hangs when it is asked again in the same decision is not a job that hangs."""
    store = submit(tmp_path / "state", jobs(tmp_path, 3, steps=2))
    phases = []

    class Second(Policy):
        name = "second"

        def place(self, view: ClusterView) -> Plan:
            doing = read_marker(store.folder)
            assert doing is not None
            phases.append((len(list(view.residents(0))), doing.phase))
            plan = view.plan()
            for job in view.waiting(1):
                plan.start_first(job.job_id)
            return plan

    play(store, Second())
    assert (1, "decide") in phases and {phase for _, phase in phases} == {"decide"}


def test_a_policy_that_was_refused_is_not_in_charge(tmp_path: Path, whole: dict[str, Any]) -> None:
    def broken(job: JobView) -> tuple[Any, ...]:
        raise ZeroDivisionError("order")

    class Broken(Policy):
        order = Order(key=broken)

    register("broken-order")(Broken)
    try:
        store = submit(tmp_path / "state", jobs(tmp_path, 3))
        asks: dict[int, Ask] = {3: lambda other: other.command("policy", "", "broken-order")}
        play(store, "exclusive", faults=at_steps(store.folder, asks))
    finally:
        del _known["broken-order"]
    assert "exclusive stays" in answers(store)[0][1]
    assert curves(store) == first(whole, 3)
    assert not any(event["event"] in ("policy", "policy-error") for event in store.events())


class Forking(Policy):
    """Forks, and lets the child come back as if it were the scheduler."""

    name = "forking"
    children: ClassVar[list[int]] = []

    def place(self, view: ClusterView) -> Plan:
        if not self.children and (child := os.fork()):
            self.children.append(child)
        return good(view)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_a_policy_forks_is_no_second_scheduler(tmp_path: Path, whole: dict[str, Any]) -> None:
    store = submit(tmp_path / "state", jobs(tmp_path, 3))
    play(store, Forking())
    (child,) = Forking.children
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    ended = [event["job_id"] for event in store.events() if event["event"] == "finish"]
    assert sorted(ended) == sorted(first(whole, 3)) and curves(store) == first(whole, 3)
