"""Corners of the engines, each with a hand-computed answer: gangs, reviews, pauses, loads, predictions, ties, tiny
jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loramux_policies import Policy, create, start_in_order
from loramux_policies.views import ClusterView, DeviceView, FusedStep, Plan
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_simulator import RunResult, api, simulate
from loramux_traces.errors import UsageError
from loramux_traces.job import Trace

from .test_purity import compare
from .workloads import GIB, job, sized, trace_of

FIDELITIES = pytest.mark.parametrize("fidelity", ["rate", "step"])


def turnaround(result: RunResult) -> dict[str, float]:
    return dict(zip(result.jobs["job_id"], result.jobs["turnaround_time"], strict=True))


def events(result: RunResult, *kinds: str) -> list[tuple[float, str, str]]:
    assert result.events is not None
    return [(e["t_s"], e["event"], e["job_id"]) for e in result.events if not kinds or e["event"] in kinds]


class Scripted(Policy):
    """Starts in order (one per seat); `script(view, plan)` does the rest."""

    name = "scripted"
    order = create("fifo").order

    def __init__(self, script: Callable[[ClusterView, Plan], None] = lambda view, plan: None) -> None:
        self.script = script

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        start_in_order(view, plan)
        self.script(view, plan)
        return plan


# --- gangs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [None, "none", "free", "linear:0.5,2"])
@pytest.mark.parametrize("policy", ["fifo", "exclusive", "las", "aspen-fifo:k=2", "srtf", "ps"])
def test_a_gang_alone_takes_its_solo_time(policy: str, curve: str | None) -> None:
    trace = sized([100.0], num_gpus=2)
    result = simulate(trace, policy, devices="2xl4", ideal=True, speedup_curve=curve)
    assert turnaround(result)["j0"] == pytest.approx(100.0, rel=1e-9)
    assert result.jobs["service_s"][0] == pytest.approx(100.0, rel=1e-9)
    assert result.jobs["allocated_resources"][0] == "0+1"


def test_a_gang_goes_at_the_pace_of_its_slowest_device() -> None:
    """phi = 1: beside another job on one of its devices it goes at half speed, until that is done."""
    trace = trace_of(job("a", 0.0, duration_s=40.0), job("b-gang", 10.0, duration_s=100.0, num_gpus=2))
    result = simulate(trace, "ps", devices="2xl4", ideal=True, speedup_curve="none")
    # a alone till 10, both at half speed till a's other 30 seconds are done at 70, then the gang's last 70 alone
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
    """In `tokens_done` as in the rate of the run, and not those it did not do while a companion was slower."""
    trace = trace_of(
        job("a", 0.0, duration_s=40.0, seq_len=300.0), job("b-gang", 10.0, duration_s=100.0, num_gpus=2), job("c", 5.0)
    )
    result = simulate(trace, policy, **({"devices": "2xl4", "ideal": True} | options))
    rows = result.jobs.set_index("job_id")
    one = simulate(trace_of(job("b", 0.0, duration_s=100.0)), policy, **({"devices": "2xl4", "ideal": True} | options))
    assert rows["tokens_done"]["b-gang"] == pytest.approx(2.0 * one.jobs["tokens_done"][0])
    tokens = result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
    assert tokens == pytest.approx(rows["tokens_done"].sum(), rel=1e-6)


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


# --- reviews ---------------------------------------------------------------------------------------------------------


def reviews(trace: Trace, level_s: float, policy: type[Scripted] = Scripted, **options: Any) -> list[float]:
    """Times at which a policy that watches j0 for that much service, once, is asked."""
    asked: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        asked.append(view.now_s)
        if len(asked) == 1:
            plan.review_when("j0", level_s)

    simulate(trace, policy(watch), ideal=True, **({"devices": "1xl4"} | options))
    return asked


def test_a_review_comes_when_the_service_is_reached() -> None:
    assert reviews(sized([100.0]), 30.0) == pytest.approx([0.0, 30.0, 100.0])
    # a second job halves the speed from 20 on
    asked = reviews(sized([100.0, 500.0], [0.0, 20.0]), 30.0, speedup_curve="none")
    assert asked == pytest.approx([0.0, 20.0, 40.0, 180.0, 600.0])


def test_a_review_of_a_gang() -> None:
    assert reviews(sized([100.0], num_gpus=2), 30.0, devices="2xl4") == pytest.approx([0.0, 30.0, 100.0])


class Windowed(Scripted):
    """Takes turns, so that its rates come from a roll-out."""

    name = "windowed"
    max_fused = 1

    def fuse(self, device: DeviceView) -> FusedStep:
        return device.step(sorted(device.ready, key=lambda run: -run.waited)[:1])


def test_a_review_survives_changes_of_speed() -> None:
    """Rolled-out rates change with every newcomer; what was watched for still comes, and at the right service."""
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


# --- pausing and resuming
# ----------------------------------------------------------------------------------------------


@FIDELITIES
def test_a_pause_and_start_at_one_instant_loses_nothing(fidelity: str) -> None:
    """--ideal: switching is free, and the step that is under way is credited to the job that leaves."""

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
    """Pausing in the middle of every step must not stop the clock of the work (it did: each pause lost its step)."""

    class Restless(Policy):
        name = "restless"

        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                plan.pause(resident.job_id)
                plan.start(resident.job_id, 0)
            start_in_order(view, plan)
            if view.now_s < 2.0:
                plan.review_at(view.now_s + 0.01)
            return plan

    trace = trace_of(job("j0", total_steps=50.0))
    result = simulate(trace, Restless, devices="1xl4", ideal=True, fidelity="step")
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
    # b shares one device with half of the gang: both at half speed till the end, but for c's instant
    assert said["b"] == pytest.approx(ends["b"], rel=1e-3)
    assert said["a"] == pytest.approx(ends["a"], rel=1e-3)


# --- charges
# -----------------------------------------------------------------------------------------------------------


def costs_of(trace: Trace, device: str = "a100-80g") -> list[Any]:
    model = CostModel(load_device(device))
    return [model.job_cost(spec) for spec in trace.jobs]


def test_loading_by_hand() -> None:
    """The base once while it stays, each adapter when it first starts; another base pushes out one that nobody uses."""
    bases = ("llama-7b", "llama-7b", "tinyllama-1.1b", "llama-7b")
    trace = trace_of(*(job(f"j{i}", 1000.0 * i, duration_s=50.0, base_model=b) for i, b in enumerate(bases)))
    costs = costs_of(trace)
    result = turnaround(simulate(trace, "fifo", devices="1xa100-80g"))
    wanted = [50.0 + cost.load_s + cost.base.load_s * loads for cost, loads in zip(costs, (1, 0, 1, 1), strict=True)]
    assert list(result.values()) == pytest.approx(wanted)
    alone = turnaround(simulate(trace, "exclusive", devices="1xa100-80g"))
    assert list(alone.values()) == pytest.approx([50.0 + cost.load_s + cost.base.load_s for cost in costs])


def test_both_fidelities_charge_pauses_the_same() -> None:
    """Copies of a state are shorter than a step here; made while a step was under way they cost nothing in steps."""

    class Restless(Policy):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for resident in view.residents(0):
                plan.pause(resident.job_id)
                plan.start(resident.job_id, 0)
            start_in_order(view, plan)
            if view.now_s < 80.0:
                plan.review_at(view.now_s + 0.5)
            return plan

    trace = sized([60.0], base_model="llama-7b", rank=64, batch_size=8, seq_len=512.0)
    cost = costs_of(trace)[0]
    assert 0.0 < cost.pause_s < cost.solo_step_s
    ran = {f: simulate(trace, Restless, devices="1xa100-80g", fidelity=f) for f in ("rate", "step")}
    for result in ran.values():
        charged = 2.0 * cost.pause_s * result.summary["preemptions"] + cost.load_s - cost.pause_s + cost.base.load_s
        assert charged > 10.0
        assert turnaround(result)["j0"] == pytest.approx(60.0 + charged, rel=0.03)


def test_mem_bytes_charges_no_base() -> None:
    trace = trace_of(job("a", 0.0, duration_s=50.0, base_model="llama-7b", mem_bytes=GIB))
    assert turnaround(simulate(trace, "fifo", devices="1xl4"))["a"] == pytest.approx(
        50.0 + costs_of(trace, "l4")[0].load_s
    )


def test_pausing_by_hand() -> None:
    """srtf on one seat: the long job is copied out, the short one loaded, and the long one copied back in."""
    trace = sized([1000.0, 10.0], [0.0, 100.0], base_model="llama-7b", rank=64)
    long, short = costs_of(trace)
    result = turnaround(simulate(trace, "srtf", devices="1xa100-80g", max_resident=1))
    first = 10.0 + long.pause_s + short.load_s
    assert result["j1"] == pytest.approx(first)
    assert result["j0"] == pytest.approx(1000.0 + long.load_s + long.base.load_s + first + long.pause_s)


def test_both_fidelities_charge_separate_processes_the_same() -> None:
    trace = sized([300.0] * 3, [0.0, 500.0, 1000.0], base_model="llama-7b")
    rate, step = (turnaround(simulate(trace, "exclusive", devices="1xa100-80g", fidelity=f)) for f in ("rate", "step"))
    assert list(step.values()) == pytest.approx(list(rate.values()), rel=0.02)


def test_tokens_are_not_counted_while_a_process_loads() -> None:
    trace = sized([40.0] * 4, [0.0, 3.0, 6.0, 9.0], base_model="llama-7b")
    for policy in ("exclusive", "separate"):
        result = simulate(trace, policy, devices="1xa100-80g")
        tokens = result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
        assert tokens == pytest.approx(result.jobs["tokens_done"].sum())


# --- out of memory
# -----------------------------------------------------------------------------------------------------


@FIDELITIES
def test_each_stay_runs_out_once_at_most(fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several checks of one stay may be under way when it ends; those that come late must not evict the next stay."""
    monkeypatch.setattr(api, "QUANTILE_99", 0.2)
    jobs = [
        job(
            f"j{i:02}",
            0.05 * i,
            base_model="tinyllama-1.1b",
            batch_size=8,
            micro_batch_size=4,
            seq_len=400.0,
            total_steps=30.0,
        )
        for i in range(16)
    ]
    total = 0
    for seed in range(8):
        result = simulate(trace_of(*jobs), "ps", devices="1xl4", fidelity=fidelity, seed=seed, events=True)
        stays: dict[str, float] = {}
        for t_s, event, job_id in events(result):
            if event in ("start", "resume"):
                stays[job_id] = t_s
            elif event == "oom":
                total += 1
                assert t_s > stays.pop(job_id)  # after at least part of a step of this very stay
    assert total > 2


# --- lengths and predictions
# -------------------------------------------------------------------------------------------


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


# --- ties
# --------------------------------------------------------------------------------------------------------------


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


# --- jobs with and without mem_bytes
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["aspen:k=3", "aspen-minpad:k=2,residents=8", "fifo", "lorafusion:k=2"])
@pytest.mark.parametrize("fusion", ["padded", "packed"])
def test_mem_bytes_beside_modelled_jobs(policy: str, fusion: str) -> None:
    """Rows of a job with mem_bytes pad the others as well: what `fits` promises, the check of the step must keep."""
    jobs = [
        job(f"m{i}", 0.0, base_model="tinyllama-1.1b", seq_len=300.0, batch_size=4, total_steps=60.0) for i in range(5)
    ]
    jobs += [
        job(
            f"o{i}", 0.0, base_model="tinyllama-1.1b", seq_len=2500.0, batch_size=2, total_steps=40.0, mem_bytes=2 * GIB
        )
        for i in range(3)
    ]
    result = simulate(trace_of(*jobs), policy, devices="1xl4", fusion=fusion, fidelity="step")
    assert result.summary["completed"] + result.summary["failed"] == 8


# --- found here, fixed since
# ---------------------------------------------------------------------------------------------


def test_snapshot_and_facade_agree_on_mixed_devices() -> None:
    trace = trace_of(
        *(
            job(n, t, total_steps=s, base_model="llama-7b")
            for n, t, s in (("a", 0.0, 1e3), ("b", 1.0, 800.0), ("c", 10.0, 400.0))
        )
    )
    policy = create("srtf")
    simulate(trace, policy, devices="1xa100-80g,1xl4", max_resident=1, on_plan=compare(policy))


def test_snapshot_and_facade_agree_beside_gangs() -> None:
    trace = trace_of(
        job("g", 0.0, duration_s=500.0, num_gpus=2), *(job(f"j{i}", 1.0 + i, duration_s=300.0) for i in range(3))
    )
    policy = create("tiresias:thresholds=50/100")
    simulate(trace, policy, devices="2xl4", max_resident=2, on_plan=compare(policy))


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
