"""Toy instances solved by brute force.

Shortest first is optimal where theory says so, and no policy beats the optimum.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from loramux_policies import create, names
from loramux_simulator import simulate

from .workloads import GIB, sized

Floats = NDArray[np.float64]
ORDERS = np.array(list(permutations(range(8))))
ALL = names()
SEAT = {"devices": "1xl4", "ideal": True, "max_resident": 1}


def best_order(sizes: list[float], submits: list[float]) -> float:
    """Least mean turnaround of all 8! orders of one machine that never interrupts a job."""
    size, submit = np.array(sizes), np.array(submits)
    now = np.zeros(len(ORDERS))
    total = np.zeros(len(ORDERS))
    for column in ORDERS.T:
        now = np.maximum(now, submit[column]) + size[column]
        total += now - submit[column]
    return float(total.min()) / len(sizes)


def best_preemptive(sizes: list[int], submits: list[int]) -> float:
    """Least mean turnaround of one machine that may switch at every whole second.

    Found by exhaustive search.
    """

    @cache
    def least(now: int, left: tuple[int, ...]) -> float:
        present = [i for i, rest in enumerate(left) if rest and submits[i] <= now]
        if not any(left):
            return 0.0
        if not present:
            return least(min(submits[i] for i, rest in enumerate(left) if rest), left)
        found = []
        for i in present:
            rest = list(left)
            rest[i] -= 1
            found.append((now + 1 - submits[i] if not rest[i] else 0) + least(now + 1, tuple(rest)))
        return min(found)

    return least(0, tuple(sizes)) / len(sizes)


def mean_of(policy: str, sizes: list[float], submits: list[float], **options: object) -> float:
    result = simulate(sized(sizes, submits, mem_bytes=GIB), policy, **(SEAT | options))  # type: ignore[arg-type]
    assert result.summary["completed"] == len(sizes)
    mean: float = result.summary["turnaround_s"]["mean"]
    return mean


@pytest.mark.parametrize("seed", range(4))
def test_shortest_first_is_the_best_order_of_eight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [float(s) for s in rng.exponential(50.0, 8) + 0.1]
    best = best_order(sizes, [0.0] * 8)
    for policy in ("sjf", "psjf", "srtf", "smallest-memory-time", "sjf-oracle"):
        assert mean_of(policy, sizes, [0.0] * 8) == pytest.approx(best, rel=1e-9), policy
    assert mean_of("fifo", sizes, [0.0] * 8) > best


@pytest.mark.parametrize("seed", range(2))
def test_nobody_beats_the_best_order_of_eight(seed: int) -> None:
    """All arrive at once.

    With one seat no order, interrupted or not, can be better than shortest first.
    """
    rng = np.random.default_rng(10 + seed)
    sizes = [float(s) for s in rng.exponential(200.0, 8) + 0.1]
    best = best_order(sizes, [0.0] * 8)
    for policy in ALL:
        assert mean_of(policy, sizes, [0.0] * 8) >= best * (1 - 1e-9), policy


@pytest.mark.parametrize("seed", range(3))
def test_whoever_never_interrupts_is_bounded_by_the_best_order(seed: int) -> None:
    rng = np.random.default_rng(20 + seed)
    sizes = [float(s) for s in rng.exponential(50.0, 8) + 0.1]
    submits = [float(t) for t in np.cumsum(rng.exponential(40.0, 8))]
    best = best_order(sizes, submits)
    for policy in ALL:
        if not create(policy).preempts and not create(policy).slices:
            assert mean_of(policy, sizes, submits) >= best * (1 - 1e-9), policy
    assert mean_of("srtf", sizes, submits) <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_srtf_is_optimal_for_one_machine_that_may_switch(seed: int) -> None:
    rng = np.random.default_rng(30 + seed)
    sizes = [int(s) for s in rng.integers(1, 6, 5)]
    submits = [int(t) for t in rng.integers(0, 9, 5)]
    best = best_preemptive(sizes, submits)
    assert mean_of("srtf", list(map(float, sizes)), list(map(float, submits))) == pytest.approx(best, rel=1e-9)
    for policy in ALL:
        assert mean_of(policy, list(map(float, sizes)), list(map(float, submits))) >= best * (1 - 1e-9), policy


@pytest.mark.parametrize("seed", range(3))
def test_the_oracle_knows_where_jobs_stop(seed: int) -> None:
    """Declared long, stopping early: only the oracle reaches the optimum of the true sizes."""
    from .workloads import job, trace_of

    rng = np.random.default_rng(40 + seed)
    steps = [float(s) for s in rng.integers(10, 400, 8)]
    declared = [float(s) + float(rng.integers(0, 2000)) for s in steps]
    trace = trace_of(
        *(job(f"j{i}", total_steps=d, stop_step=s) for i, (s, d) in enumerate(zip(steps, declared, strict=True)))
    )
    found = {p: simulate(trace, p, **SEAT).jobs for p in ("sjf-oracle", "srtf-oracle", "sjf")}  # type: ignore[arg-type]
    solo = [float(s) for s in found["sjf"]["solo_time"]]
    best = best_order(solo, [0.0] * 8)
    assert found["sjf-oracle"]["turnaround_time"].mean() == pytest.approx(best, rel=1e-9)
    assert found["srtf-oracle"]["turnaround_time"].mean() == pytest.approx(best, rel=1e-9)
    assert found["sjf"]["turnaround_time"].mean() >= best


@pytest.mark.parametrize("policy", ALL)
def test_makespan_is_never_below_memory_times_time(policy: str) -> None:
    """Where co-running is free, sum(memory x time) / (devices x capacity) bounds every schedule."""
    rng = np.random.default_rng(50)
    from loramux_profiles.devices import load_device

    from .workloads import job, trace_of

    capacity = load_device("l4").memory_bytes
    sizes = rng.exponential(300.0, 24) + 1.0
    memory = [int(m) for m in rng.integers(2, 20, 24) * GIB]
    jobs = [
        job(f"j{i:02}", 0.0, duration_s=float(s), mem_bytes=m)
        for i, (s, m) in enumerate(zip(sizes, memory, strict=True))
    ]
    result = simulate(trace_of(*jobs), policy, devices="2xl4", ideal=True, speedup_curve="free")
    assert result.summary["completed"] == 24
    area = float(np.dot(sizes, memory))
    assert result.summary["makespan_s"] >= area / (2 * capacity) * (1 - 1e-9)
    assert result.summary["makespan_s"] >= sizes.max() * (1 - 1e-9)
    assert result.summary["makespan_s"] <= sizes.sum() * (1 + 1e-6) + 24 * 3600.0
