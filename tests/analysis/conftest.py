"""Synthetic runs: a small honest queue that fills the result schema.

It has arrivals, waiting, seats on devices, and memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loramux_traces.results import COMPLETED, FAILED_OOM, JOB_COLUMNS, RunStats, empty_timeline, summarise
from loramux_traces.runfolder import Run, prepare_folder, read_run, write_run

GIB = 2**30
CAPACITY = 80 * GIB
BASE_BYTES = 14 * GIB
METHODS = ("lora", "mixlora", "mola", "dynmole")


def simulate(
    policy: str, seed: int, *, jobs: int = 300, devices: int = 4, seats: int = 3, load: float = 0.9, slow: float = 1.0
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """Simulate non-preemptive FIFO or SJF (by `policy`); same seed, same trace.

    On devices x seats servers. Returns jobs, summary and timeline.

    `slow` stretches every service time by a random factor around it, as a real run differs from a
    simulated one.
    """
    rng = np.random.default_rng(seed)
    service = rng.lognormal(7.0, 1.2, jobs)
    gaps = rng.exponential(np.exp(7.0 + 0.72) / (devices * seats * load), jobs)
    submit = np.cumsum(gaps) - gaps[0]
    own = rng.integers(2, 16, jobs) * GIB * 4 // max(4, seats)
    method, base = rng.choice(METHODS, jobs), rng.choice(["llama-7b", "qwen2.5-7b"], jobs, p=[0.7, 0.3])
    took = service if slow == 1.0 else service * slow * np.random.default_rng(seed + 1).lognormal(0, 0.1, jobs)
    timeline = empty_timeline()
    timeline["devices"] = [
        {"device_id": d, "name": "a100-80g", "memory_capacity_bytes": CAPACITY} for d in range(devices)
    ]
    segments, samples, queue = timeline["segments"], timeline["samples"], timeline["queue"]
    residents: list[set[int]] = [set() for _ in range(devices)]
    waiting: list[tuple[float, int]] = []
    start, finish, where = np.full(jobs, np.nan), np.full(jobs, np.nan), np.zeros(jobs, dtype=int)
    events: list[tuple[float, int, int]] = [(float(submit[j]), 1, j) for j in range(jobs)]
    heapq.heapify(events)

    def used(d: int) -> int:
        return BASE_BYTES + sum(int(own[j]) for j in residents[d])

    def sample(d: int, now: float) -> None:
        memory = used(d) if residents[d] else 0
        for name, value in (
            ("device_id", d),
            ("t_s", now),
            ("memory_bytes", memory),
            ("n_residents", len(residents[d])),
        ):
            samples[name].append(value)

    while events:
        now, kind, j = heapq.heappop(events)
        if kind == 0:
            residents[where[j]].remove(j)
            sample(where[j], now)
        else:
            heapq.heappush(waiting, (float(service[j] if policy.startswith("sjf") else submit[j]), j))
        while waiting:
            k = waiting[0][1]
            fitting = [d for d in range(devices) if len(residents[d]) < seats and used(d) + int(own[k]) <= CAPACITY]
            if not fitting:
                break
            d = min(fitting, key=lambda i: len(residents[i]))
            heapq.heappop(waiting)
            residents[d].add(k)
            start[k], finish[k], where[k] = now, now + took[k], d
            heapq.heappush(events, (float(finish[k]), 0, k))
            sample(d, now)
        queue["t_s"].append(now)
        queue["n_waiting"].append(len(waiting))
    for k in sorted(range(jobs), key=lambda k: (start[k], k)):
        for name, value in zip(segments, (f"j{k:05d}", int(where[k]), start[k], finish[k]), strict=True):
            segments[name].append(value)
    state = np.where(np.arange(jobs) % 97 == 96, FAILED_OOM, COMPLETED)
    table = pd.DataFrame(
        {
            "job_id": [f"j{k:05d}" for k in range(jobs)],
            "submission_time": submit,
            "starting_time": start,
            "finish_time": finish,
            "waiting_time": start - submit,
            "execution_time": took,
            "paused_time": 0.0,
            "turnaround_time": finish - submit,
            "stretch": (finish - submit) / service,
            "solo_time": service,
            "final_state": state,
            "reason": np.where(state == COMPLETED, "", "=out of memory, twice"),
            "allocated_resources": where.astype(str),
            "preemptions": 0,
            "oom_events": (state != COMPLETED).astype(int),
            "steps_done": service * 2,
            "tokens_done": service * 4096,
            "service_s": took,
            "user": "u1",
            "group": "",
            "base_model": base,
            "method": method,
            "priority": -1,
            "num_gpus": 1,
        }
    )[list(JOB_COLUMNS)]
    area = float(sum((finish - start) * own))
    stats = RunStats(
        busy_device_s=0.8 * devices * float(finish.max()), n_devices=devices, real_tokens=float(service.sum() * 4096),
        computed_tokens=float(service.sum() * 4096) * (1.12 if policy.startswith("sjf") else 1.31),
        memory_byte_s=area, memory_peak_bytes=float(max(samples["memory_bytes"])),
        memory_capacity_bytes=float(CAPACITY), steps=float(service.sum() * 2),
    )  # fmt: skip
    return table, {**summarise(table, stats), "sim_wall_s": 0.5}, timeline


def manifest(policy: str, seed: int, jobs: int = 300, devices: int = 4, kind: str = "simulated") -> dict[str, Any]:
    """A manifest as the simulator writes it."""
    return {
        "kind": kind,
        "policy": policy,
        "policy_params": {},
        "seed": seed,
        "argv": ["simulate"],
        "trace": {"name": "toy.csv", "sha256": f"{seed:064x}", "provenance": "modelled (Philly-like)", "jobs": jobs},
        "devices": [{"device_id": d, "name": "a100-80g"} for d in range(devices)],
        "profile_sha256": "0" * 64,
        "fidelity": "rate",
        "fusion": "packed",
        "ideal": False,
        "origin": "assumed",
        "versions": {"loramux": "0.1.0"},
    }


MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Writes a run and reads it back: make_run(folder, policy, seed, kind=..., **options).

    The options are those of `simulate`.
    """

    def make(folder: Path, policy: str = "fifo", seed: int = 0, kind: str = "simulated", **options: Any) -> Run:
        jobs, summary, timeline = simulate(policy, seed, **options)
        prepare_folder(folder)
        about = manifest(policy, seed, len(jobs), int(options.get("devices", 4)), kind)
        events = [{"t_s": 0.0, "kind": "arrival", "job_id": "j00000"}]
        write_run(folder, manifest=about, jobs=jobs, events=events, summary=summary, timeline=timeline)
        return read_run(folder)

    return make


@pytest.fixture(scope="session")
def run_set(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Path:
    """A folder of runs: two policies x three seeds, 300 jobs on 4 devices."""
    folder = tmp_path_factory.mktemp("runs")
    for policy in ("fifo", "sjf"):
        for seed in range(3):
            make_run(folder / f"{policy}-s{seed}", policy, seed)
    return folder


@pytest.fixture(scope="session")
def big_run(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Run:
    """1,000 jobs on 4 devices with 8 seats each: the size the Gantt must stay readable at."""
    return make_run(tmp_path_factory.mktemp("big") / "fifo-s0", "fifo", 0, jobs=1000, seats=8, load=0.95)


@pytest.fixture(scope="session")
def sweep_rows() -> pd.DataFrame:
    """results.csv of a sweep: 3 loads x 2 policies x 3 seeds."""
    from loramux_traces.tidy import flatten_summary

    rows = []
    for load in (0.5, 0.7, 0.9):
        for policy in ("fifo", "sjf"):
            for seed in range(3):
                _, summary, _ = simulate(policy, seed, load=load)
                key = {"policy": policy, "params": "", "load": load, "seed": seed, "fidelity": "rate", "devices": 4}
                rows.append({**key, **flatten_summary(summary)})
    return pd.DataFrame(rows)
