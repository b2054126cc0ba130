"""Properties of random runs.

Conservation, Little's law, memory, bounds, for every policy, device and fidelity.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_policies import create, names
from loramux_profiles.curves import load_curve
from loramux_simulator import run as run_module
from loramux_traces.canonical import build_trace

from . import invariants
from .workloads import BASES, GIB, Case, cases, job, trace_of

QUICK = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GROUPS = [names()[i::6] for i in range(6)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: "+".join(group)[:40])
@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_every_law_in_every_run(fidelity: str, group: list[str]) -> None:
    @settings(QUICK, max_examples=25 if fidelity == "rate" else 12)
    @given(cases(fidelity=fidelity), st.sampled_from(group))
    def lawful(case: Case, name: str) -> None:
        policy = create(name)
        invariants.check(case, case.play(policy), policy)

    lawful()


@pytest.mark.parametrize("name", names())
def test_every_policy_on_one_busy_trace(name: str) -> None:
    """Forty jobs of all kinds on three devices: the same laws, where queues form."""
    case = busy()
    policy = create(name)
    result = case.play(policy)
    invariants.check(case, result, policy)
    assert result.summary["completed"] >= 30


def busy(**options: Any) -> Case:
    rng = Random(4)
    jobs = [
        job(
            f"j{i:02}",
            rng.choice([0.0, 50.0, 50.0, 400.0]) + rng.random(),
            base_model=rng.choice(BASES),
            method=rng.choice(["lora", "mixlora"]),
            batch_size=rng.choice([1, 4, 8]),
            seq_len=rng.choice([60.0, 300.0]),
            duration_s=rng.choice([0.5, 30.0, 400.0, 3000.0]),
            ref_gpu="a100-40g",
            priority=rng.choice([0, 0, 3]),
            mem_bytes=rng.choice([None, None, 4 * GIB, 12 * GIB]),
            stop_step=rng.choice([None, None, 20.0]),
            num_gpus=rng.choice([1, 1, 1, 1, 2]),
            user=rng.choice(["ann", "bob", ""]),
        )
        for i in range(40)
    ]
    given = {"fidelity": "rate", "fusion": "packed", "max_resident": 3, "prediction_error": 0.3, "seed": 1} | options
    return Case(trace_of(*jobs), "2xl4,1xa100-40g", given)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
@pytest.mark.parametrize("name", ["fifo", "aspen", "srtf", "ps", "exclusive", "separate", "las"])
def test_out_of_memory_loses_no_job(name: str, fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory model that errs five times as much as its bound allows for.

    Every law holds all the same.
    """
    monkeypatch.setattr(run_module, "QUANTILE_99", run_module.QUANTILE_99 / 5)
    rng = Random(7)
    jobs = [
        job(
            f"j{i:03}",
            3.0 * i,
            base_model="tinyllama-1.1b",
            batch_size=8,
            micro_batch_size=4,
            seq_len=rng.choice([450.0, 700.0]),
            total_steps=float(rng.randint(10, 40)),
            rank=8,
        )
        for i in range(40 if fidelity == "rate" else 16)
    ]
    policy = create(name)
    ooms = 0
    for seed in range(5):
        case = Case(trace_of(*jobs), "1xl4", {"fidelity": fidelity, "fusion": "padded", "seed": seed})
        result = case.play(policy)
        invariants.check(case, result, policy)
        ooms += result.summary["oom_events"]
        rows = result.jobs
        failed = rows["final_state"] == "FAILED_OOM"
        assert set(rows["final_state"]) <= {"COMPLETED", "FAILED_OOM"}
        assert (rows["oom_events"] <= 4).all()
        assert ((rows["oom_events"] == 4) == failed).all()
        assert (
            rows.loc[failed, "reason"]
            .str.fullmatch(r"out of memory 4 times: a step needs \d+ bytes, \d+ available")
            .all()
        )
    assert ooms > 0


def test_ideal_never_runs_out() -> None:
    case = busy(ideal=True)
    assert case.play("fifo").summary["oom_events"] == 0


@QUICK
@given(cases(fidelity="rate", ideal=True, prediction_error=0.0), st.sampled_from(["none", "linear:0.3,2.5", "free"]),
       st.sampled_from(names()))  # fmt: skip
def test_nobody_is_faster_than_alone(case: Case, curve: str, name: str) -> None:
    """With phi(n) <= n nobody is faster than alone on the fastest device of the cluster."""
    assert all(load_curve(curve).phi(n) <= n for n in range(1, 20))
    policy = create(name)
    result = case.play(policy, speedup_curve=curve)
    solo = case.solo_s(policy)
    for row in result.jobs.itertuples():
        if row.final_state == "COMPLETED":
            assert row.turnaround_time >= solo[row.job_id][0] * (1 - 1e-6) - 1e-9
            assert row.execution_time >= solo[row.job_id][0] * (1 - 1e-6) - 1e-9
            if curve == "free" and case.devices_used().count(case.devices_used()[0]) == len(case.devices_used()):
                assert row.execution_time <= solo[row.job_id][1] * (1 + 1e-6) + 1e-6 or row.preemptions or policy.slices


@QUICK
@given(cases(), st.sampled_from(names()), st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_matters(case: Case, name: str, random: Random) -> None:
    """Rows in any order, and a second run in one process, give the same results.

    Table, summary, events and timeline.
    """
    jobs = list(case.trace.jobs)
    random.shuffle(jobs)
    runs = [case.play(name), Case(build_trace("test", jobs), case.devices, case.options).play(name)]
    for run in runs:
        run.summary.pop("sim_wall_s")
    assert runs[0].jobs.equals(runs[1].jobs)
    assert runs[0].summary == runs[1].summary
    assert runs[0].events == runs[1].events
    assert runs[0].timeline == runs[1].timeline


@QUICK
@given(cases(), st.sampled_from(names()))
def test_looking_on_changes_nothing(case: Case, name: str) -> None:
    """An observer that reads the whole queue and every plan changes nothing of the run.

    Not even its number of decisions.
    """

    def look(view: Any, plan: Any) -> None:
        for waiting in view.waiting(view.n_waiting):
            list(plan.candidates(waiting.job_id))
        len(view.waiting(10**6))
        view.snapshot()

    plain, watched = case.play(name), case.play(name, on_plan=look)
    for run in (plain, watched):
        run.summary.pop("sim_wall_s")
    assert plain.jobs["final_state"].equals(watched.jobs["final_state"])
    assert plain.summary["decisions"] == watched.summary["decisions"]
    assert plain.jobs["turnaround_time"].tolist() == pytest.approx(
        watched.jobs["turnaround_time"].tolist(), rel=1e-9, nan_ok=True
    )
