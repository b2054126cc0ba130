"""Parity: a recorded stream gives the same decisions from torch and without it.

The run was on the real clock.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_policies import create
from loramux_policies.stepping.replay import replay
from loramux_policies.stepping.stream import Stream, decisions
from loramux_runtime.train.faults import FaultPlan, recorded_faults
from loramux_runtime.train.run import TrainRun
from loramux_runtime.train.times import RealTimes, RecordedTimes, sleep_until
from loramux_traces.errors import StateError

from .tiny import job, make_run, play, profile, write_rows

POLICIES = ("fifo", "srtf", "las:quantum_s=0.003", "aspen:k=2,residents=3", "aspen-priority", "easy", "max-min")
SEATS = 3.0
SMALL = {"rank": 4, "target_modules": "qv"}
OOM_STEP, LATE_S = 9, 0.2
Events = list[dict[str, Any]]


def workload(data: Path, seed: int) -> list[dict[str, Any]]:
    """Ten jobs in half a second.

    `late` comes in the middle of the first step, `picky` stops early.
    """
    rng = random.Random(seed)
    jobs = [
        job(
            f"j{i}",
            data,
            submit_s=0.0 if i < 3 else round(rng.uniform(0.0, 0.5), 3),
            steps=5 if i == 1 else rng.randint(2, 6),
            batch_size=rng.choice((4, 6)),
            micro_batch_size=2,
            priority=rng.randint(0, 2),
            seed=i,
            adapter={"rank": rng.choice((4, 8)), "target_modules": "qv"},
        )
        for i in range(8)
    ]
    stops = {"every_steps": 1, "patience": 1, "min_improvement": 100.0}
    late = job("late", data, submit_s=LATE_S, micro_batch_size=2, priority=3, adapter=SMALL)
    picky = job("picky", data, adapter=SMALL, submit_s=0.1, steps=30, evaluation=stops, data_options={"eval_rows": 4})
    return [*jobs, late, picky]


def poison(held: list[TrainRun]) -> Callable[..., None]:
    """Job j1 diverges from its second step on.

    A property of the job, so it does so in the torch replay by itself.
    """

    def act(point: str, facts: dict[str, Any]) -> None:
        training = held[0]._training.get("j1")
        if training is not None and training.step >= 1 and "j1" in facts["job_ids"]:
            training.adapter.slab.params.fill_(float("nan"))
            training.adapter.slab.version += 1

    return act


class FromFirstStep(RealTimes):
    """The real clock from the first step on.

    However long a busy machine takes to get there, that is at 0.
    """

    _begun = False

    def now_s(self) -> float:
        return super().now_s() if self._begun else 0.0

    def step_begins(self) -> None:
        self._begun = True


def record(jobs: list[dict[str, Any]], policy: str) -> tuple[TrainRun, Events]:
    """A run on the real clock with a slow first step, one out-of-memory and one divergence."""
    times = FromFirstStep()
    held: list[TrainRun] = []
    diverge, steps = poison(held), iter(range(10**6))

    def faults(point: str, facts: dict[str, Any]) -> None:
        diverge(point, facts)
        number = next(steps)
        if number == 0:
            sleep_until(1.2 * LATE_S, times.now_s, lambda: False)
        if number == OOM_STEP:
            raise torch.OutOfMemoryError("injected")

    run = make_run(jobs, policy, times=times, faults=FaultPlan(step=faults), max_resident=SEATS, record=True)
    held.append(run)
    return run, json.loads(json.dumps(run.play().events))  # as events.jsonl gives it back


def by_torch(events: Events, jobs: list[dict[str, Any]], policy: str) -> Events:
    """The recorded run again.

    Every step is trained, only the clock and the out-of-memory are the recorded ones.
    """
    stream = Stream.of(events, {one["id"]: one["batch_size"] for one in jobs})
    held: list[TrainRun] = []
    faults = recorded_faults(stream, FaultPlan(step=poison(held)))
    run = make_run(jobs, policy, times=RecordedTimes(stream), faults=faults, max_resident=SEATS, record=True)
    held.append(run)
    return run.play().events


def by_loop(events: Events, run: TrainRun, policy: str, **options: Any) -> Events:
    """The recorded run again, without torch."""
    return replay(events, run.specs, create(policy), profile(), max_resident=SEATS, **options).events


def count(events: Events, name: str) -> int:
    return sum(row["event"] == name for row in events)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_recorded_stream_gives_the_same_decisions_from_both(tmp_path: Path, policy: str, seed: int) -> None:
    jobs = workload(write_rows(tmp_path), seed)
    run, events = record(jobs, policy)
    steps = [row for row in events if row["event"] == "step"]
    assert count(events, "oom") == count(events, "diverge") == 1 and count(events, "finish") == 9
    # in mid-step
    assert any(step["began_s"] < spec.submit_s < step["t_s"] for step in steps for spec in run.specs)
    log = decisions(events)
    assert decisions(by_loop(events, run, policy)) == log
    assert decisions(by_torch(events, jobs, policy)) == log


def changed(events: Events, event: str, change: Callable[[dict[str, Any]], None], number: int = 0) -> Events:
    """The same stream with one row of that kind changed."""
    copy = deepcopy(events)
    change([row for row in copy if row["event"] == event][number])
    return copy


def test_a_changed_stream_changes_the_decisions(tmp_path: Path) -> None:
    """Instants, rows, failures and ends all count."""
    policy = "aspen:k=2,residents=3"
    jobs = workload(write_rows(tmp_path), 0)
    run, events = record(jobs, policy)
    log = decisions(events)

    def differs(stream: Events, policy: str = policy) -> bool:
        return decisions(by_loop(stream, run, policy)) != log

    assert not differs(events)
    # `late` is heard a step later
    sooner = changed(events, "step", lambda row: row.update(t_s=LATE_S / 2))
    heard = [row for row in by_loop(sooner, run, policy) if row["event"] in ("arrive", "step")]
    late = next(i for i, row in enumerate(heard) if row.get("job_id") == "late")
    assert count(heard[:late], "step") == 2 and differs(sooner)

    def ten_times(row: dict[str, Any]) -> None:
        row["entries"] = [[job_id, [10 * n for n in lengths]] for job_id, lengths in row["entries"]]

    assert any(differs(changed(events, "step", ten_times, i)) for i in range(10))
    assert differs(changed(events, "step", lambda row: row.pop("oom"), OOM_STEP))
    assert differs(changed(events, "diverge", lambda row: row.update(event="finish")))
    assert differs(events, "aspen-priority")


def test_a_replay_explains_every_decision(tmp_path: Path) -> None:
    """The views and plans of the run, one by one: what each waiting job waits for."""
    from loramux_policies.loop.explain import why

    jobs = workload(write_rows(tmp_path), 0)
    run, events = record(jobs, "fifo")
    said: list[str] = []
    by_loop(events, run, "fifo", on_plan=lambda view, plan: said.append(why(view, plan, "late")))
    assert said[0] == "" and any(text.startswith("starts on device 0") for text in said)


def test_an_unrecorded_run_cannot_be_replayed(tmp_path: Path) -> None:
    run, result = play([job("a", write_rows(tmp_path))])
    assert not any(row["event"] in ("begin", "step") for row in result.events)
    with pytest.raises(StateError, match="--record"):
        replay(result.events, run.specs, create("aspen"), profile())


def test_a_run_that_was_stopped_is_replayed_to_where_it_was_stopped(tmp_path: Path) -> None:
    held: list[TrainRun] = []
    jobs = [job(f"j{i}", write_rows(tmp_path)) for i in range(2)]
    run = make_run(
        jobs, record=True, on_step=lambda *_: held[0].driver.request_stop() if len(held[0].steps) == 3 else None
    )
    held.append(run)
    events = run.play().events
    assert count(events, "step") == 3 and events[-1]["event"] == "stop"
    assert replay(events, run.specs, create("aspen"), profile()).events == events
