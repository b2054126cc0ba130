"""A live scheduler's recorded stream: the loop without torch takes the same decisions from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loramux_policies import create
from loramux_policies.stepping.replay import replay
from loramux_policies.stepping.stream import decisions
from loramux_profiles.devices import load_device
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.job import JobSpec
from loramux_traces.locking import owned

from .serving import jobs, service, submit


@pytest.mark.parametrize(
    "policy", ["aspen", "las", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fifo", "srtf"))]
)
def test_decisions_are_taken_again(policy: str, tmp_path: Path) -> None:
    """On the real clock, with arrivals in mid-step and one step that runs out of memory."""
    store = submit(tmp_path / "state", jobs(tmp_path, 8), at_s=[0.0, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7])
    specs: list[JobSpec] = []
    steps = [0]

    def fail(_: str, facts: dict[str, object]) -> None:
        steps[0] += 1
        if steps[0] == 5:
            raise torch.OutOfMemoryError("injected")

    with owned(store.folder):
        scheduler = service(store, policy, record=True, max_resident=3.0, faults=FaultPlan(step=fail))
        arrive = scheduler.loop.arrive
        scheduler.loop.arrive = lambda job: (specs.append(job.spec), arrive(job))[1]  # type: ignore[method-assign]
        assert scheduler.play().failed == 0
    events = list(store.events())
    again = replay(events, specs, create(policy), load_device("cpu"), max_resident=3.0)
    assert again.left == ""
    assert decisions(again.events) == decisions(events)
    assert sum(event["event"] == "oom" for event in events) == 1
