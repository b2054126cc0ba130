"""Shares below one seat mean the same on every pace and in both fidelities.

The contract is that of `Plan.start`.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import Policy, PolicyError
from loramux_policies.views import ClusterView, DeviceView, Entry, FusedStep, Plan
from loramux_simulator import RunResult, simulate

from .workloads import job, sized, trace_of

FIDELITIES = pytest.mark.parametrize("fidelity", ["rate", "step"])


class Sharing(Policy):
    """Everybody on device 0, with the share that the job's group says."""

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        for waiting in view.waiting(view.n_waiting):
            plan.start(waiting.job_id, 0, float(waiting.group or 1.0))
        return plan


class Windowed(Sharing):
    """One job a step, the one that has waited longest, so that rates come from a roll-out."""

    max_fused = 1

    def fuse(self, device: DeviceView) -> FusedStep:
        return device.step(sorted(device.ready, key=lambda run: -run.waited)[:1])


class Processes(Sharing):
    copies = "separate"


def ends(result: RunResult) -> dict[str, float]:
    return dict(zip(result.jobs["job_id"], result.jobs["turnaround_time"], strict=True))


def shared(*jobs: tuple[float, float], policy: type[Policy] = Sharing, **options: Any) -> list[float]:
    """Turnarounds of jobs of (solo seconds, share)."""
    trace = trace_of(*(job(f"j{i}", duration_s=s, group=str(share)) for i, (s, share) in enumerate(jobs)))
    return list(ends(simulate(trace, policy, devices="1xl4", ideal=True, **options)).values())


PACES = pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Sharing, {"fidelity": "rate"}),
        (Sharing, {"fidelity": "rate", "fusion": "padded"}),
        (Sharing, {"fidelity": "rate", "speedup_curve": "free"}),
        (Windowed, {"fidelity": "rate"}),
        (Processes, {"fidelity": "rate"}),
        (Sharing, {"fidelity": "step"}),
        (Sharing, {"fidelity": "step", "fusion": "padded"}),
        (Windowed, {"fidelity": "step"}),
        (Processes, {"fidelity": "step"}),
    ],
    ids=str,
)


@PACES
def test_two_halves_of_a_seat_take_turns(policy: type[Policy], options: dict[str, Any]) -> None:
    assert shared((100.0, 0.5), (100.0, 0.5), policy=policy, **options) == pytest.approx([200.0, 200.0], rel=0.02)


@PACES
def test_shares_are_proportions(policy: type[Policy], options: dict[str, Any]) -> None:
    """3 : 1 on one seat: the first ends at 100, when the other has a quarter of that.

    Alone it goes at full speed.
    """
    assert shared((75.0, 0.75), (100.0, 0.25), policy=policy, **options) == pytest.approx([100.0, 175.0], rel=0.02)


@PACES
def test_no_device_idles_for_a_share(policy: type[Policy], options: dict[str, Any]) -> None:
    assert shared((100.0, 0.1), policy=policy, **options) == pytest.approx([100.0], rel=0.02)


@FIDELITIES
@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_tied_jobs_beside_a_whole_seat(fidelity: str, fusion: str) -> None:
    """The tied ones are each in half of the steps of the whole one.

    It has had 2,000 when each has had 1,000.
    """
    steps = {"whole": 4000.0, "a-half": 1000.0, "b-half": 1000.0}
    columns = {"base_model": "tinyllama-1.1b", "seq_len": 400.0}
    trace = trace_of(
        *(job(i, total_steps=n, group=str(0.5 if "half" in i else 1.0), **columns) for i, n in steps.items())
    )
    found = ends(simulate(trace, Sharing, devices="1xl4", ideal=True, fusion=fusion, fidelity=fidelity))
    pair = trace_of(job("whole", total_steps=2000.0, **columns), job("other", total_steps=2000.0, **columns))
    both = ends(simulate(pair, Sharing, devices="1xl4", ideal=True, fusion=fusion, fidelity=fidelity))["whole"]
    alone = ends(
        simulate(
            trace_of(job("whole", total_steps=2000.0, **columns)), Sharing, devices="1xl4", ideal=True, fusion=fusion
        )
    )
    assert found["a-half"] == pytest.approx(both, rel=0.02)
    assert found["b-half"] == pytest.approx(both, rel=0.02)
    assert found["whole"] == pytest.approx(both + alone["whole"], rel=0.02)


@FIDELITIES
def test_tied_jobs_of_two_bases(fidelity: str) -> None:
    """Bases take turns in any case; with half a seat each, every round holds one of them."""
    jobs = [
        job(f"j{i}", duration_s=60.0, base_model=b, group="0.5")
        for i, b in enumerate(("smollm2-135m", "tinyllama-1.1b"))
    ]
    found = ends(simulate(trace_of(*jobs), Sharing, devices="1xl4", ideal=True, fidelity=fidelity))
    solo = [simulate(trace_of(one), "fifo", devices="1xl4", ideal=True).summary["steps"] for one in jobs]
    slow, fast = sorted(60.0 / n for n in solo)[::-1]  # seconds a step: one step of each in turn
    assert min(found.values()) == pytest.approx(min(solo) * (slow + fast), rel=0.02)
    assert max(found.values()) == pytest.approx(120.0, rel=0.02)


@FIDELITIES
def test_a_share_may_change(fidelity: str) -> None:
    class Later(Sharing):
        def place(self, view: ClusterView) -> Plan:
            plan = super().place(view)
            if view.now_s == 0.0:
                plan.review_at(50.0)
            elif view.now_s == 50.0:
                plan.start("j0", 0, 0.25)
                plan.start("j1", 0, 0.75)
            return plan  # type: ignore[no-any-return]

    trace = trace_of(*(job(f"j{i}", duration_s=100.0, group="0.5") for i in range(2)))
    found = ends(simulate(trace, Later, devices="1xl4", ideal=True, fidelity=fidelity))
    # 25 s each at 50; then j1's 75 at three quarters, till 150; j0 has had 50 by then
    assert found == pytest.approx({"j0": 200.0, "j1": 150.0}, rel=0.02)


def test_a_gang_shares_on_each_of_its_devices() -> None:
    class Gangs(Sharing):
        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            for waiting in view.waiting(9):
                plan.start(waiting.job_id, next(plan.candidates(waiting.job_id)), 0.5)
            return plan

    trace = sized([100.0, 100.0], num_gpus=2)
    assert list(ends(simulate(trace, Gangs, devices="2xl4", ideal=True)).values()) == pytest.approx([200.0, 200.0])


def test_half_a_seat_more_is_not_a_whole_one() -> None:
    """phi between whole numbers: with phi = n, 1.5 seats must not make anyone faster than alone."""
    assert shared((100.0, 1.0), (50.0, 0.5), speedup_curve="free") == pytest.approx([100.0, 100.0])


def test_who_is_left_out_may_not_be_fused() -> None:
    class Greedy(Sharing):
        name = "greedy"

        def fuse(self, device: DeviceView) -> FusedStep:
            assert device.n_residents == len(device.ready) == 1
            return FusedStep(device.base_model, tuple(Entry(f"j{i}", 1) for i in range(2)))

    trace = trace_of(*(job(f"j{i}", duration_s=5.0, group="0.5") for i in range(2)))
    with pytest.raises(PolicyError, match=r"greedy.*leaves it out"):
        simulate(trace, Greedy, devices="1xl4", ideal=True, fidelity="step")
