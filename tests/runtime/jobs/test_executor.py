"""The torch backend under the decide-apply loop.

Same decisions as simulated, faults stay with their job.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_policies import Policy
from loramux_runtime.train.faults import FaultPlan
from loramux_simulator import simulate
from loramux_traces.job import Trace

from .tiny import MIXED, job, losses, make_run, play, profile, write_rows


def mixed(data: Path, **fields: Any) -> list[dict[str, Any]]:
    return [job(f"j{i}", data, seed=i, **{**kind, **fields}) for i, kind in enumerate(MIXED)]


def test_a_job_ends_with_the_same_losses_fused_and_alone(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    jobs = mixed(data)
    together = losses(play(jobs)[1])
    for one in jobs:
        assert losses(play([one])[1])[one["id"]] == together[one["id"]]


def test_every_job_completes_and_the_books_add_up(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    run, result = play(mixed(data), "fifo")
    table = result.jobs.set_index("job_id")
    assert set(table["final_state"]) == {"COMPLETED"}
    assert (table["steps_done"] == 4).all()
    trained = {row["job_id"]: row["tokens"] for row in result.training}
    assert sum(trained.values()) == pytest.approx(
        result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
    )
    assert result.summary["steps"] == len(result.steps)
    assert not run.residents.devices[0].fused.runs and not run.loop.cluster.running


class TakesTurns(Policy):
    """Pauses every resident after it has attained a little, and starts whoever waits longest."""

    name = "takes-turns"
    preempts = True

    def place(self, view: Any) -> Any:
        plan = view.plan()
        residents = view.residents(0)
        if view.n_waiting:
            for resident in residents:
                if resident.attained_s > 0.4 * resident.solo_s * (1 + resident.preemptions):
                    plan.pause(resident.job_id)
        for waiting in view.waiting(view.n_waiting):
            if len(plan.residents(0)) < 2 and next(plan.candidates(waiting.job_id), None) is not None:
                plan.start(waiting.job_id, 0)
        for job_id in plan.residents(0):
            known = {r.job_id: r.attained_s for r in residents}
            plan.review_when(job_id, known.get(job_id, 0.0) + 1e-9)
        return plan


def test_pausing_changes_no_bit(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    jobs = mixed(data, micro_batch_size=2)
    _, result = play(jobs, TakesTurns())
    assert result.summary["preemptions"] > 0
    for one in jobs:
        assert losses(play([one])[1])[one["id"]] == losses(result)[one["id"]]


def test_an_out_of_memory_costs_only_the_newest_its_place(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    jobs = mixed(data, micro_batch_size=2)
    calls = {"n": 0}

    def once(point: str, facts: dict[str, object]) -> None:
        calls["n"] += 1
        if calls["n"] in (2, 5):
            raise torch.OutOfMemoryError("injected")

    run, result = play(jobs, "fifo", faults=FaultPlan(step=once))
    assert result.summary["oom_events"] == 2
    assert set(result.jobs["final_state"]) == {"COMPLETED"}
    assert run.loop.cluster.fleet[0].raised > 0
    undisturbed = play(jobs, "fifo")[1]
    assert losses(result) == losses(undisturbed)
    tokens = [{(r["job_id"], r["step"]): r["tokens"] for r in which.training} for which in (result, undisturbed)]
    assert tokens[0] == tokens[1]  # those of a step that began again are counted once


def test_a_job_that_always_runs_out_fails_and_the_others_finish(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    jobs = mixed(data)

    def whenever(point: str, facts: dict[str, Any]) -> None:
        if "j4" in facts["job_ids"]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    _, result = play(jobs, "fifo", faults=FaultPlan(step=whenever))
    states = result.jobs.set_index("job_id")["final_state"]
    assert states["j4"] == "FAILED_OOM"
    assert set(states.drop("j4")) == {"COMPLETED"}
    alone = losses(play([j for j in jobs if j["id"] != "j4"], "fifo")[1])
    assert {k: v for k, v in losses(result).items() if k != "j4"} == alone


def test_other_errors_are_not_taken_for_an_out_of_memory(tmp_path: Path) -> None:
    def broken(point: str, facts: dict[str, object]) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        play([job("a", write_rows(tmp_path))], faults=FaultPlan(step=broken))


def poison(run: Any, job_id: str, at_step: int) -> Callable[..., None]:
    """Make the job's parameters NaN at its `at_step`."""

    def act(point: str, facts: dict[str, Any]) -> None:
        training = run()._training.get(job_id)
        if training is not None and training.step >= at_step and job_id in facts["job_ids"]:
            training.adapter.slab.params.fill_(float("nan"))
            training.adapter.slab.version += 1

    return act


def test_a_diverging_job_fails_alone(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    jobs = mixed(data, steps=6)
    held: list[Any] = []
    run = make_run(jobs, "fifo", faults=FaultPlan(step=poison(lambda: held[0], "j1", 2)))
    held.append(run)
    result = run.play()
    table = result.jobs.set_index("job_id")
    assert table.loc["j1", "final_state"] == "FAILED_DIVERGED"
    assert "not finite" in table.loc["j1", "reason"]
    assert set(table["final_state"].drop("j1")) == {"COMPLETED"}
    clean = losses(play(jobs, "fifo")[1])
    for job_id, curve in losses(result).items():
        if job_id == "j1":
            assert curve[:2] == clean["j1"][:2] and curve[2:] == [None] * 3
        else:
            assert curve == clean[job_id]


@pytest.mark.parametrize(
    "policy", ["fifo", "sjf", "priority", "srtf", "aspen", "aspen-priority", "aspen-fifo:k=2", "best-fit"]
)
def test_simulated_and_real_decisions_agree(tmp_path: Path, policy: str) -> None:
    """Rows of one length and steps that take what the model says.

    The simulator's step fidelity must decide the same.
    """
    fast = {"disk_bandwidth": 1e14, "host_bandwidth": 1e14, "join_s": 0.0, "memory_margin": 0.0}
    device = profile(**fast)
    data = write_rows(tmp_path, length=30)
    jobs = [
        job(
            f"j{i}",
            data,
            steps=3 + i % 4,
            priority=i % 3,
            seed=i,
            micro_batch_size=4,
            adapter={"rank": 4 * (1 + i % 2)},
        )
        for i in range(7)
    ]
    run, real = play(jobs, policy, device=device, max_resident=3)
    trace = Trace(name="parity", jobs=run.specs)
    simulated = simulate(trace, policy, devices=[device], fidelity="step", max_resident=3, events=True)
    assert [(e["event"], e["job_id"]) for e in simulated.events or []] == [
        (e["event"], e["job_id"]) for e in real.events
    ]
    for a, b in zip(simulated.events or [], real.events, strict=True):
        assert a["t_s"] == pytest.approx(b["t_s"], rel=1e-4, abs=1e-5)


def test_a_job_too_large_for_the_device_is_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path)
    small = profile(memory_bytes=float(1 << 20))
    _, result = play([job("a", data)], device=small)
    assert list(result.jobs["final_state"]) == ["UNSCHEDULABLE"]
    assert result.hopeless == 1 and "bytes" in result.jobs["reason"][0]
