"""Rules against independent references, job by job.

One seat and several, exact sharing, processor sharing.
"""

from __future__ import annotations

import itertools
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from loramux_policies import create
from loramux_policies.loop.job import Job

from ..theory import references as ref
from .fake_backend import free, job, play

Array = NDArray[np.float64]


def trace(n: int, law: str, rho: float, seed: int, servers: int = 1) -> tuple[list[Job], Array, Array]:
    rng = np.random.default_rng(seed)
    if law == "equal":
        size = np.ones(n)
    elif law == "hyperexponential":
        size = np.where(rng.random(n) < 0.9, rng.exponential(0.5, n), rng.exponential(5.5, n)) + 1e-3
    else:
        size = rng.exponential(1.0, n) + 1e-3
    arrival = np.cumsum(rng.exponential(size.mean() / (rho * servers), n))
    arrival[n // 2] = arrival[n // 2 + 1]  # a tie
    jobs = [job(f"j{i:05d}", float(arrival[i]), float(size[i])) for i in range(n)]
    return jobs, arrival, size


def turnaround(finished_s: dict[str, float], arrival: Array) -> Array:
    return np.array([finished_s[f"j{i:05d}"] - arrival[i] for i in range(len(arrival))])


@pytest.mark.parametrize("law", ["exponential", "equal", "hyperexponential"])
@pytest.mark.parametrize(
    ("policy", "reference"),
    [("fifo", ref.lindley), ("sjf", ref.sjf), ("psjf", ref.psjf), ("srtf", ref.srpt), ("las", ref.las)],
)
def test_one_seat(policy: str, reference: ref.Curve, law: str) -> None:
    jobs, arrival, size = trace(400, law, 0.85, seed=3)
    played = play(create(policy), jobs, seats=1.0)
    assert np.abs(turnaround(played.finished_s, arrival) - reference(arrival, size)).max() < 1e-6  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize(
    ("policy", "reference"), [("fifo", ref.fcfs), ("best-fit", ref.fcfs), ("sjf", ref.sjf), ("srtf", ref.srpt)]
)
def test_three_devices(policy: str, reference: ref.Curve) -> None:
    jobs, arrival, size = trace(400, "hyperexponential", 0.85, seed=4, servers=3)
    played = play(create(policy), jobs, devices=3, seats=1.0)
    assert np.abs(turnaround(played.finished_s, arrival) - reference(arrival, size, 3)).max() < 1e-6  # type: ignore[call-arg]


def test_processor_sharing() -> None:
    jobs, arrival, size = trace(300, "exponential", 0.8, seed=5)
    played = play(create("ps"), jobs)
    assert np.abs(turnaround(played.finished_s, arrival) - ref.ps(arrival, size)).max() < 1e-6


def levels(arrival: Array, size: Array, seats: int) -> Array:
    """Foreground-background on several seats as a fluid.

    Groups of equal attained service, the lowest on whole seats.
    """
    n = len(size)
    had, done = np.zeros(n), np.full(n, np.nan)
    now, upcoming = 0.0, 0
    present: list[int] = []
    while upcoming < n or present:
        rate = dict.fromkeys(present, 0.0)
        left = float(seats)
        gaps: list[float] = []
        groups: list[list[int]] = []
        for i in sorted(present, key=lambda i: had[i]):
            if groups and had[i] - had[groups[-1][0]] < 1e-9:
                groups[-1].append(i)
            else:
                groups.append([i])
        for group in groups:
            for i in group:
                rate[i] = min(1.0, left / len(group))
            left = max(0.0, left - len(group))
        for low, high in itertools.pairwise(groups):
            closing = rate[low[0]] - rate[high[0]]
            if closing > 1e-12:
                gaps.append((had[high[0]] - had[low[0]]) / closing)
        gaps += [(size[i] - had[i]) / rate[i] for i in present if rate[i] > 0.0]
        gaps += [arrival[upcoming] - now] if upcoming < n else []
        step = min(gaps)
        now += step
        for i in present:
            had[i] += rate[i] * step
        for i in [i for i in present if had[i] >= size[i] - 1e-10]:
            done[i] = now - arrival[i]
            present.remove(i)
        while upcoming < n and arrival[upcoming] <= now + 1e-12:
            present.append(upcoming)
            upcoming += 1
    return done


@pytest.mark.parametrize("seats", [1, 2, 3])
def test_exact_las_on_several_seats(seats: int) -> None:
    jobs, arrival, size = trace(250, "hyperexponential", 0.85, seed=6, servers=seats)
    played = play(create("las"), jobs, seats=float(seats), phi=free)
    assert np.abs(turnaround(played.finished_s, arrival) - levels(arrival, size, seats)).max() < 1e-6


def test_sliced_las_is_close_to_exact_on_several_devices() -> None:
    """Whole seats and a quantum instead of shares: the mean stays within a tenth of the fluid's."""
    ours, fluid, fifo = [], [], []
    for seed in range(6):
        jobs, arrival, size = trace(400, "hyperexponential", 0.8, seed, servers=3)
        ours.append(turnaround(play(create("las"), jobs, devices=3, seats=1.0).finished_s, arrival).mean())
        fluid.append(levels(arrival, size, 3).mean())
        fifo.append(ref.fcfs(arrival, size, 3).mean())
    assert abs(np.mean(ours) / np.mean(fluid) - 1.0) < 0.1 < np.mean(fifo) / np.mean(fluid) - 1.0


@pytest.mark.parametrize(("policy", "other"), [("las", "gittins:law=weibull,shape=0.4,median_s=0.5")])
def test_gittins_is_las_where_the_hazard_falls(policy: str, other: str) -> None:
    """For a falling hazard rate the Gittins index is least attained service.

    The grid of ages costs a little.
    """
    jobs, arrival, size = trace(1500, "hyperexponential", 0.8, seed=8)
    exact = turnaround(play(create(policy), jobs, seats=1.0).finished_s, arrival).mean()
    jobs, arrival, size = trace(1500, "hyperexponential", 0.8, seed=8)
    index = turnaround(play(create(other), jobs, seats=1.0).finished_s, arrival).mean()
    assert index == pytest.approx(exact, rel=0.15)
    assert index < 0.6 * ref.lindley(arrival, size).mean()


def test_memory_limited_exact_las_serves_everybody() -> None:
    """Equals that memory keeps apart take turns instead of sharing.

    Nobody starves and nothing loops for ever.
    """
    jobs = [job(f"j{i}", 0.0, 4.0, gib=6.0 if i == 2 else 2.0) for i in range(5)]
    played = play(create("las"), jobs, gib=9.0, seats=1.0)
    assert len(played.finished_s) == 5 and max(played.finished_s.values()) == pytest.approx(20.0, rel=0.2)


def test_srtf_is_optimal_among_all_rules_on_one_seat() -> None:
    means = {}
    for name in ("srtf", "psjf", "sjf", "las", "fifo", "gittins", "tiresias", "finish-time-fairness"):
        jobs, arrival, _ = trace(200, "hyperexponential", 0.9, seed=7)
        means[name] = turnaround(play(create(name), jobs, seats=1.0).finished_s, arrival).mean()
    assert min(means, key=lambda name: means[name]) == "srtf"
    assert max(means.values()) < inf
