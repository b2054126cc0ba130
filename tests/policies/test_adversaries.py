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


# --- what a failing policy is told
# ------------------------------------------------------------------------------------------------


def told(place: Callable[[Any, ClusterView], Any]) -> str:
    """Return the message of a policy with this `place`."""
    with pytest.raises(PolicyError) as caught:
        play(place)
    return str(caught.value)


def test_an_over_commit_names_time_device_jobs_and_bytes() -> None:
    text = told(over_commits)
    assert text.startswith("policy villain at 4.000 s: j2 does not fit device 0")
    assert "beside j0" in text
    assert f"of {23 * GIB} bytes" in text
    for asked in ("plan.fits(0, ['", "plan.free_bytes(0) is ", "plan.candidates('"):
        assert asked in text
    assert "device 0 holds j0" in text


def test_what_is_raised_is_told_with_its_line_and_what_was_there() -> None:
    text = told(raises)
    assert "at 0.000 s: place() raised KeyError: 'sorry' (test_adversaries.py, line" in text
    assert "1 job waits (j0); nothing runs" in text
    for asked in ("plan.fits(", "plan.free_bytes(", "plan.candidates(", "view.waiting("):
        assert asked in text


def test_a_generator_is_told_of_its_yield() -> None:
    def place(_: Any, view: ClusterView) -> Any:
        yield view.plan()

    assert "`yield`" in told(place)


class Textless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Reprless:
    def __repr__(self) -> str:
        raise SystemExit(3)


def acting(act: Callable[[ClusterView, Plan, str], Any]) -> Callable[[Any, ClusterView], Plan]:
    def place(_: Any, view: ClusterView) -> Plan:
        plan = view.plan()
        act(view, plan, view.waiting(1)[0].job_id)
        return plan

    return place


def raising(error: BaseException) -> Callable[[Any, ClusterView], Plan]:
    def place(_: Any, view: ClusterView) -> Plan:
        raise error

    return place


WORSE: dict[str, Callable[[Any, ClusterView], Any]] = {
    "exits": raising(SystemExit(0)),
    "no-text": raising(Textless()),
    "a-megabyte-of-text": raising(ValueError("x" * 10**6)),
    "own-policy-error": raising(PolicyError("no")),
    "object-without-repr": lambda _, view: Reprless(),
    "recursion": lambda self, view: self.place(view),
    "no-memory": raising(MemoryError()),
    "review-text": acting(lambda view, plan, job: plan.review_at("soon")),  # type: ignore[arg-type]
    "review-past": acting(lambda view, plan, job: plan.review_at(-1.0)),
    "watch-nan": acting(lambda view, plan, job: (plan.start(job, 0), plan.review_when(job, float("nan")))),
    "reject-junk": acting(lambda view, plan, job: plan.reject(job, 3, "a", None)),  # type: ignore[arg-type]
    "reject-nan": acting(lambda view, plan, job: plan.reject(job, "no", float("nan"), 0.0)),
    "unhashable-job": acting(lambda view, plan, job: plan.start([], 0)),  # type: ignore[arg-type]
    "device-text": acting(lambda view, plan, job: plan.start(job, "0")),  # type: ignore[arg-type]
    "device-half": acting(lambda view, plan, job: plan.start(job, 0.5)),  # type: ignore[arg-type]
    "share-nan": acting(lambda view, plan, job: plan.start(job, 0, float("nan"))),
    "sets-the-view": acting(lambda view, plan, job: setattr(view, "now_s", 9.0)),
    "sets-a-job": acting(lambda view, plan, job: setattr(view.waiting(1)[0], "rows", 1)),
    "adds-an-action": acting(lambda view, plan, job: plan.actions.append("x")),  # type: ignore[attr-defined]
    "adds-a-review": acting(lambda view, plan, job: plan.reviews.append(-3.0)),  # type: ignore[attr-defined]
    "sets-the-actions": acting(lambda view, plan, job: setattr(plan, "actions", ["x"])),
    "clears-the-windows": acting(lambda view, plan, job: view.windows.clear()),  # type: ignore[attr-defined]
    "changes-the-changes": acting(lambda view, plan, job: view.changes.arrived.append("x")),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("place", WORSE.values(), ids=WORSE.keys())
def test_worse_places_are_policy_errors_of_bounded_length(place: Callable[[Any, ClusterView], Any]) -> None:
    text = told(place)
    assert text.startswith("policy villain at 0.000 s: ")
    assert len(text) < 2000


def test_a_numpy_device_is_a_device() -> None:
    """Policies that reckon with numpy hand over its integers; results hold plain ones."""
    from json import dumps

    from numpy import int64

    def place(_: Any, view: ClusterView) -> Plan:
        plan = view.plan()
        for waiting in view.waiting(9):
            for device in plan.candidates(waiting.job_id):
                plan.start(waiting.job_id, int64(device))  # type: ignore[arg-type]
                break
        return plan

    result = play(place, events=True)
    assert result.summary["completed"] == 5
    dumps(result.events)


def test_fuse_is_told_time_device_jobs_and_bytes() -> None:
    """Also where steps are only tried out: the time is that of the run."""

    def answer(device: DeviceView) -> FusedStep:
        if device.n_residents > 1:
            raise KeyError("sorry")
        return device.step(device.ready)

    for fidelity in ("rate", "step"):
        policy = type("Late", (Fuser,), {"answer": staticmethod(answer), "name": "late"})
        with pytest.raises(PolicyError) as caught:
            simulate(SINGLE, policy, devices="1xl4", fidelity=fidelity)
        text = str(caught.value)
        assert text.startswith("policy late at ")
        assert not text.startswith("policy late at 0.000 s")
        for words in ("fuse() raised KeyError", "on device 0", "j0, j1", "bytes at most", "device.fits(jobs)"):
            assert words in text


@pytest.mark.parametrize(
    "attribute",
    [
        {"seats": "many"}, {"seats": 0}, {"seats": float("nan")}, {"max_fused": "all"}, {"max_fused": 0}, {"order": 3},
        {"order": Order(key=3)}, {"order": property(lambda self: 1 / 0)}, {"copies": "some"},
        {"max_fused": 1, "windows": lambda self, n: 1 / 0},
    ],
    # no addresses: both test workers must give a test one name
    ids=lambda attribute: " ".join(f"{k}:{type(v).__name__}" for k, v in attribute.items()),
)  # fmt: skip
def test_attributes_without_meaning(attribute: dict[str, Any]) -> None:
    policy = type("Odd", (Policy,), {"place": lambda _, view: starting(view), "name": "odd", **attribute})
    with pytest.raises(PolicyError, match="odd"):
        simulate(SINGLE, policy, devices="1xl4")


# --- orders
# ------------------------------------------------------------------------------------------------


class Sly:
    """Is smaller than what comes before it and larger than what comes after it, as it likes."""

    asked = 0

    def __lt__(self, other: object) -> bool:
        Sly.asked += 1
        return Sly.asked % 3 == 0

    __gt__ = __lt__


class Raising:
    def __eq__(self, other: object) -> bool:
        raise ValueError("eq")

    __hash__ = None  # type: ignore[assignment]


def deep() -> tuple[Any, ...]:
    key: tuple[Any, ...] = ()
    for _ in range(50_000):
        key = (key,)
    return key


NAN = float("nan")
DEEP = deep()
KEYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nan": (lambda job: (NAN,), "holds NaN"),
    "new-nan": (lambda job: (0, float("nan")), "holds NaN"),
    "bare-nan": (lambda job: NAN, "holds NaN"),
    "nested-nan": (lambda job: ((1, NAN),), "holds NaN"),
    "deep": (lambda job: DEEP, "RecursionError"),
    "eq-raises": (lambda job: (Raising(),), "ValueError: eq"),
    "exits": (lambda job: (_ for _ in ()).throw(SystemExit(0)), "SystemExit"),
    "generators": (lambda job: (x for x in "a"), "neither a tuple nor a number or text"),
    "lists": (lambda job: [1], "neither a tuple nor a number or text"),
    "mixed": (lambda job: (None,) if job.job_id == "j1" else (1,), "it is (None,), and that of "),
    "recursion": (lambda job: KEYS["recursion"][0](job), "RecursionError"),
}


def ordered(key: Callable[[Any], Any], place: Callable[[Any, ClusterView], Any] | None = None) -> type[Policy]:
    body = {"order": Order(key=key), "place": place or (lambda _, view: view.plan()), "name": "odd"}
    return type("Odd", (Policy,), body)


@pytest.mark.parametrize("name", KEYS)
def test_keys_without_an_order_name_policy_and_job(name: str) -> None:
    key, words = KEYS[name]
    with pytest.raises(PolicyError) as caught:
        simulate(TRACE, ordered(key), devices="2xl4")
    text = str(caught.value)
    assert text.startswith("policy odd at ")
    assert "the order key of " in text
    assert words in text
    assert len(text) < 2000


def test_a_key_that_compares_differently_each_time() -> None:
    """It was `internal error: not in list`, when the job was to be taken out of the queue."""
    jobs = trace_of(*(job(f"j{i:02}", float(i), total_steps=600.0, mem_bytes=20 * GIB) for i in range(40)))
    policy = ordered(lambda view: (Sly(),), lambda _, view: starting(view))
    with pytest.raises(PolicyError, match=r"policy odd at .* the order key of j\d\d compares differently each time"):
        simulate(jobs, policy, devices="1xl4")


@pytest.mark.parametrize("key", [lambda view: (float(hash(view.remaining_s)),), lambda view: (10**4000, "x" * 10**5)])
def test_odd_keys_that_are_an_order_all_the_same(key: Callable[[Any], Any]) -> None:
    result = simulate(TRACE, ordered(key, lambda _, view: starting(view)), devices="2xl4")
    assert result.summary["completed"] == 5


# --- observers
# ------------------------------------------------------------------------------------------------


def test_an_observer_that_fails_is_not_the_policys_fault() -> None:
    def watch(view: Any, plan: Any) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        simulate(SINGLE, "fifo", devices="1xl4", on_plan=watch)


def test_why_passes_on_what_it_cannot_answer() -> None:
    """A job that has not come yet is no fault; a view that is over is."""
    from loramux_policies import StaleViewError
    from loramux_policies.loop.explain import why

    kept: list[Any] = []

    def watch(view: Any, plan: Any) -> None:
        kept[:] = [view, plan]
        assert why(view, plan, "nobody") == ""

    simulate(SINGLE, "fifo", devices="1xl4", on_plan=watch)
    with pytest.raises(StaleViewError):
        why(kept[0], kept[1], "j0")


def test_a_policy_that_changes_directory_leaves_it_as_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.chdir(tmp_path)

    def place(_: Any, view: ClusterView) -> Plan:
        os.chdir("/")
        return starting(view)

    assert play(place).summary["completed"] == 5
    assert os.getcwd() == str(tmp_path.resolve())
