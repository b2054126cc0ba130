"""Early-stop predictions: what policies may know of where a job stops, and what they may not."""

from __future__ import annotations

from collections import defaultdict
from math import log
from typing import Any

import numpy as np
import pytest

from loramux_policies import create
from loramux_policies.views import DeviceView, FusedStep, ReadyJob
from loramux_simulator import simulate

from .workloads import job, trace_of

CONTRACT = {name for name in vars(ReadyJob) if not name.startswith("_")}


def watched(see: Any, policy: str = "aspen:k=4,residents=12") -> Any:
    """The policy, with `see(ready job)` called for every job before every step."""
    made = create(policy)

    class Watching(type(made)):  # type: ignore[misc]
        name = "watching"

        def fuse(self, device: DeviceView) -> FusedStep:
            for ready in device.ready:
                see(ready)
            step: FusedStep = super().fuse(device)
            return step

    chosen = create(policy)
    chosen.__class__ = Watching
    return chosen


def test_ready_jobs_show_the_contract_and_nothing_else() -> None:
    shown: set[str] = set()

    def see(ready: Any) -> None:
        if not shown:
            shown.update(name for name in dir(ready) if not name.startswith("_") and name not in dir(tuple))
            with pytest.raises(AttributeError):
                ready.waited = 99

    simulate(trace_of(job("a"), job("b", stop_step=30.0)), watched(see), devices="1xl4", fidelity="step")
    assert shown == CONTRACT


def ends(seed: int = 0, **options: Any) -> dict[str, set[float]]:
    """Where a policy that turns `p_stop` around puts each job's end, relative to the true end."""
    found: dict[str, set[float]] = defaultdict(set)
    done: dict[str, int] = defaultdict(int)

    def see(ready: ReadyJob) -> None:
        done[ready.job_id] += ready.waited == 0
        if 0.0 < ready.p_stop < 1.0:
            found[ready.job_id].add(round((done[ready.job_id] - 1) / ready.p_stop**0.25, 2))

    stops: list[Any] = [{"stop_step": 100.0}, {}]
    jobs = [job(f"j{i:02}", micro_batch_size=4, total_steps=200.0, **stops[i % 2]) for i in range(12)]
    simulate(trace_of(*jobs), watched(see, "aspen:k=12"), devices="1xl4", fidelity="step", seed=seed, **options)
    return found


@pytest.mark.parametrize("options", [{}, {"ideal": True}, {"prediction_error": 0.4}], ids=str)
def test_no_policy_can_tell_where_a_job_stops(options: dict[str, Any]) -> None:
    """One blurred point per job and seed, off the truth by as much as documented.

    Stopping early or not.
    """
    errors = []
    for seed in range(4):
        for job_id, points in ends(seed, **options).items():
            assert max(points) - min(points) < 0.05
            errors.append(log(min(points) / (200.0 if int(job_id[1:]) % 2 else 100.0)))
    sigma = float(np.hypot(0.3, options.get("prediction_error", 0.0)))
    assert len(errors) == 48
    assert np.std(errors) == pytest.approx(sigma, rel=0.35)
    assert abs(np.mean(errors)) < 3 * sigma / 48**0.5
    assert np.mean(np.abs(errors) < 0.01) < 0.1


def test_predictions_are_seeded_per_job() -> None:
    assert ends(seed=1) == ends(seed=1) != ends(seed=2)


def test_without_early_stops_there_is_nothing_to_predict() -> None:
    seen: set[float] = set()
    jobs = [job(f"j{i}", micro_batch_size=4, total_steps=100.0) for i in range(3)]
    simulate(trace_of(*jobs), watched(lambda ready: seen.add(ready.p_stop)), devices="1xl4", fidelity="step")
    assert seen == {0.0}
