"""What holds of every run, whatever the trace, the policy and the devices."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from pytest import approx

from loramux_simulator import RunResult

from .workloads import ENDS, Case

LAST = {"finish", "fail", "reject", "unschedulable"}


def check(case: Case, result: RunResult, policy: Any) -> None:
    """All of them."""
    jobs_end_once(case, result)
    times_in_order(case, result)
    work_is_done(case, result, policy)
    littles_law(result)
    within_capacity(case, result, policy)
    totals_agree(case, result)


def jobs_end_once(case: Case, result: RunResult) -> None:
    rows = result.jobs
    assert sorted(rows["job_id"]) == sorted(spec.job_id for spec in case.trace.jobs)
    assert set(rows["final_state"]) <= ENDS
    assert result.events is not None
    ends = [event["job_id"] for event in result.events if event["event"] in LAST]
    assert sorted(ends) == sorted(rows["job_id"])
    times = [event["t_s"] for event in result.events]
    assert times == sorted(times)
    s = result.summary
    assert s["jobs"] == s["completed"] + s["failed"] + s["unschedulable"] + s["rejected"] == len(rows)


def times_in_order(case: Case, result: RunResult) -> None:
    for row in result.jobs.itertuples():
        slack = 1e-9 * (1.0 + row.submission_time)
        if row.final_state == "COMPLETED":
            assert row.starting_time >= row.submission_time - slack
            assert row.finish_time >= row.starting_time
            assert row.waiting_time == approx(row.starting_time - row.submission_time, abs=slack)
            assert row.execution_time == approx(row.finish_time - row.starting_time - row.paused_time, abs=slack)
            assert row.paused_time >= 0.0
            assert row.turnaround_time == approx(row.finish_time - row.submission_time, abs=slack)
    stays = defaultdict(list)
    segments = result.timeline["segments"]
    for job_id, start_s, end_s in zip(segments["job_id"], segments["start_s"], segments["end_s"], strict=True):
        assert end_s >= start_s
        stays[job_id].append((start_s, end_s))
    gangs = {spec.job_id: spec.num_gpus for spec in case.trace.jobs}
    for row in result.jobs.itertuples():
        mine = sorted(set(stays[row.job_id])) if gangs[row.job_id] > 1 else sorted(stays[row.job_id])
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))
        if row.final_state == "COMPLETED":
            assert sum(end - start for start, end in mine) == approx(row.execution_time, rel=1e-9, abs=1e-6)


def work_is_done(case: Case, result: RunResult, policy: Any) -> None:
    true, solo = case.true_steps(policy), case.solo_s(policy)
    one_type = len(set(case.devices_used())) == 1
    for row in result.jobs.itertuples():
        low, high = solo[row.job_id]
        if row.final_state == "COMPLETED":
            assert row.steps_done == approx(true[row.job_id], rel=1e-9)
            assert low * (1 - 1e-6) <= row.service_s <= high * (1 + 1e-6)
            if one_type:
                assert row.service_s == approx(row.solo_time, rel=1e-6, abs=1e-12)
        elif row.final_state == "UNSCHEDULABLE":
            assert row.steps_done == 0 and row.service_s == 0 and row.reason
        else:
            assert 0 <= row.steps_done <= true[row.job_id] * (1 + 1e-9)
            share = row.steps_done / true[row.job_id]
            assert low * share * (1 - 1e-6) - 1e-9 <= row.service_s <= high * share * (1 + 1e-6) + 1e-9


def littles_law(result: RunResult) -> None:
    """Integral of the number in the system = sum of the times in it.

    On each device, and in the queue.
    """
    timeline = result.timeline
    segments, samples, queue = timeline["segments"], timeline["samples"], timeline["queue"]
    stays: dict[int, float] = defaultdict(float)
    for device, start_s, end_s in zip(segments["device_id"], segments["start_s"], segments["end_s"], strict=True):
        stays[device] += end_s - start_s
    present: dict[int, float] = defaultdict(float)
    last: dict[int, tuple[float, int]] = {}
    for device, t_s, n in zip(samples["device_id"], samples["t_s"], samples["n_residents"], strict=True):
        before_s, before = last.get(device, (t_s, 0))
        assert t_s >= before_s
        present[device] += before * (t_s - before_s)
        last[device] = (t_s, n)
    assert all(n == 0 for _, n in last.values())
    for device in stays | present:
        assert present[device] == approx(stays[device], rel=1e-9, abs=1e-6), f"device {device}"
    waited = 0.0
    since: dict[str, float] = {}
    assert result.events is not None
    for event in result.events:
        name, job_id, t_s = event["event"], event["job_id"], event["t_s"]
        if name in ("arrive", "pause", "oom"):
            since[job_id] = t_s
        elif name in ("start", "resume", "reject", "fail"):
            waited += t_s - since.pop(job_id)
    assert not since
    steps = zip(queue["t_s"], queue["t_s"][1:], queue["n_waiting"], strict=False)
    assert sum(n * (b - a) for a, b, n in steps) == approx(waited, rel=1e-9, abs=1e-6)
    assert not queue["n_waiting"] or queue["n_waiting"][-1] == 0


def within_capacity(case: Case, result: RunResult, policy: Any) -> None:
    capacity = [device["memory_capacity_bytes"] for device in result.devices]
    samples = result.timeline["samples"]
    seats = case.options.get("max_resident") or float("inf")
    if not policy.slices:
        seats = min(seats, policy.seats)
    elif case.options.get("ideal"):
        seats = float("inf")  # tied jobs share one seat
    for device, used, n in zip(samples["device_id"], samples["memory_bytes"], samples["n_residents"], strict=True):
        assert 0 <= used <= capacity[device] * (1 + 1e-12)
        assert 0 <= n <= seats
    assert result.summary["memory_peak_bytes"] <= max(capacity) * (1 + 1e-12)


def totals_agree(case: Case, result: RunResult) -> None:
    s = result.summary
    assert 0.0 <= s["gpu_busy_fraction"] <= 1.0
    assert 0.0 <= s["padding_fraction"] < 1.0
    assert s["preemptions"] == result.jobs["preemptions"].sum()
    assert result.events is not None
    assert s["preemptions"] == sum(event["event"] == "pause" for event in result.events)
    assert s["oom_events"] == sum(event["event"] == "oom" for event in result.events)
    if s["makespan_s"] > 0 and s["completed"] == s["jobs"]:
        one_type = len(set(case.devices_used())) == 1
        rolled = any("roll-out" in note for note in s["notes"])  # there tokens are drawn
        if case.options["fidelity"] == "step" or (one_type and not rolled):
            tokens = s["effective_tokens_per_s"] * s["makespan_s"]
            assert tokens == approx(result.jobs["tokens_done"].sum(), rel=1e-6)
