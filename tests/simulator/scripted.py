"""A policy that does what a test tells it to, and what tests read off a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loramux_policies import Policy, create, start_in_order
from loramux_policies.views import ClusterView, DeviceView, FusedStep, Plan
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_simulator import RunResult, simulate
from loramux_traces.job import Trace

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


class Restless(Scripted):
    """Pauses every resident and starts it again at one instant.

    Whenever it is asked, and every `every_s` until `until_s`.
    """

    name = "restless"

    def __init__(self, every_s: float, until_s: float) -> None:
        self.every_s, self.until_s = every_s, until_s

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        for resident in view.residents(0):
            plan.pause(resident.job_id)
            plan.start(resident.job_id, 0)
        start_in_order(view, plan)
        if view.now_s < self.until_s:
            plan.review_at(view.now_s + self.every_s)
        return plan


class Windowed(Scripted):
    """Takes turns, so that its rates come from a roll-out."""

    name = "windowed"
    max_fused = 1

    def fuse(self, device: DeviceView) -> FusedStep:
        return device.step(sorted(device.ready, key=lambda run: -run.waited)[:1])


def reviews(trace: Trace, level_s: float, policy: type[Scripted] = Scripted, **options: Any) -> list[float]:
    """Times at which a policy that watches j0 for that much service, once, is asked."""
    asked: list[float] = []

    def watch(view: ClusterView, plan: Plan) -> None:
        asked.append(view.now_s)
        if len(asked) == 1:
            plan.review_when("j0", level_s)

    simulate(trace, policy(watch), ideal=True, **({"devices": "1xl4"} | options))
    return asked


def costs_of(trace: Trace, device: str = "a100-80g") -> list[Any]:
    model = CostModel(load_device(device))
    return [model.job_cost(spec) for spec in trace.jobs]
