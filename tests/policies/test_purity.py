"""Every policy gives the same answer on the frozen snapshot as on the live view.

At every decision of random runs.

And looking on changes nothing: an observer that reads the whole queue leaves the run as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from loramux_policies import Policy, create, names
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan
from loramux_simulator import simulate

from ..simulator.workloads import Case, cases, job, trace_of

ALL = names()


def answer(plan: Any) -> list[Any]:
    """What a plan says, without objects that a snapshot copies."""
    said: list[Any] = [(type(action).__name__, action.job.job_id, *list(action[1:])) for action in plan.actions]
    said.append(sorted(plan.reviews))
    said.append(sorted((job.job_id, pytest.approx(level, rel=1e-9)) for job, level in plan.watches))
    return said


def compare(policy: Policy) -> Any:
    def look(view: LiveView, plan: DeltaPlan) -> None:
        snapshot = view.snapshot()
        again = policy.place(snapshot)
        assert answer(again) == answer(plan), f"{policy.name} at {view.now_s}"
        assert answer(policy.place(snapshot)) == answer(plan), f"{policy.name}: the snapshot changed"

    return look


@pytest.mark.parametrize("name", ALL)
def test_snapshot_and_facade_agree(name: str) -> None:
    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(cases(most=8))
    def agree(case: Case) -> None:
        policy = create(name)
        case.play(policy, on_plan=compare(policy))

    agree()


def test_snapshot_and_facade_agree_on_mixed_devices() -> None:
    trace = trace_of(
        *(
            job(n, t, total_steps=s, base_model="llama-7b")
            for n, t, s in (("a", 0.0, 1e3), ("b", 1.0, 800.0), ("c", 10.0, 400.0))
        )
    )
    policy = create("srtf")
    simulate(trace, policy, devices="1xa100-80g,1xl4", max_resident=1, on_plan=compare(policy))
