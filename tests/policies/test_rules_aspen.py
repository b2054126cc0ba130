"""The per-step rules.

Aspen's guarantees as properties, MinPad as released, balanced bins, halving.
"""

from __future__ import annotations

import random
from itertools import combinations
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_policies import Policy, create
from loramux_policies.views import FusedStep

from .fake_backend import FakeDevice, Ready

FUSING = ["aspen", "aspen-fifo", "aspen-minpad", "lorafusion"]


def residents(rng: random.Random, n: int, *, classes: int = 1, rows: int = 4) -> list[Ready]:
    return [
        Ready(
            f"j{i:02d}", (1,) * rng.randint(1, rows), submit_s=float(rng.randrange(5)), priority=rng.randrange(classes)
        )
        for i in range(n)
    ]


def advance(ready: list[Ready], step: FusedStep, rng: random.Random, longest: int = 600) -> None:
    """Next micro-batches for who ran, one more step of waiting for the others.

    The next of a halved one is its rest.
    """
    ran = {entry.job_id: entry.rows for entry in step.entries}
    for job in ready:
        rows = ran.get(job.job_id)
        job.waited = job.waited + 1 if rows is None else 0
        if rows is not None:
            rest = job.lengths[rows:]
            job.lengths = rest or tuple(rng.randint(8, longest) for _ in range(job.rows))


def chosen(device: FakeDevice, step: FusedStep) -> list[Ready]:
    by_id = {job.job_id: job for job in device.ready}
    return [by_id[entry.job_id] for entry in step.entries]


def whole(device: FakeDevice, step: FusedStep) -> bool:
    return all(entry.rows == job.rows for entry, job in zip(step.entries, chosen(device, step), strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from([3_000, 8_000, 20_000, 10**9]),
    st.booleans(),
)
def test_aspen_guarantees(seed: int, n: int, k: int, classes: int, capacity: int, padded: bool) -> None:
    """At most k, what fits, no wait above W + residents, no inversion, the same answer twice."""
    rng = random.Random(seed)
    ready = residents(rng, n, classes=classes)
    for job in ready:
        job.lengths = tuple(rng.randint(8, 600) for _ in job.lengths)
    policy = create(f"aspen:k={k}")
    limit = max(16, 4 * ceil(n / k))
    for _ in range(120):
        device = FakeDevice(list(ready), float(capacity), padded)
        step = policy.fuse(device)
        assert step == policy.fuse(FakeDevice(list(reversed(ready)), float(capacity), padded))
        taken = chosen(device, step)
        assert 1 <= len(taken) <= k and len({job.job_id for job in taken}) == len(taken)
        if len(taken) > 1:
            assert whole(device, step)
        if whole(device, step):
            assert device.fits(taken) or sum(job.rows for job in taken) == 1
            calm = [job for job in taken if job.waited < limit]
            out = [job for job in ready if job not in taken]
            for low in calm:
                rest = [job for job in taken if job is not low]
                for high in out:
                    assert high.priority <= low.priority or not device.fits([*rest, high])
        assert max(job.waited for job in ready) <= limit + n
        advance(ready, step, rng)


@pytest.mark.parametrize("name", FUSING)
def test_everybody_if_they_are_k_at_most(name: str) -> None:
    policy = create(f"{name}:k=4")
    rng = random.Random(1)
    for n in range(1, 5):
        ready = residents(rng, n)
        device = FakeDevice(ready)
        assert not policy.windows(n) and policy.fuse(device) == device.everyone() and device.asked == 0
    assert policy.windows(5) and len(policy.fuse(FakeDevice(residents(rng, 8))).entries) == 4


@pytest.mark.parametrize("name", FUSING)
def test_windows_never_over_commit_and_finish_what_does_not_fit(name: str) -> None:
    rng = random.Random(2)
    policy = create(f"{name}:k=3")
    for capacity in (700, 1500, 4000):
        ready = residents(rng, 7)
        for _ in range(80):
            device = FakeDevice(list(ready), float(capacity))
            step = policy.fuse(device)
            if whole(device, step):
                assert device.fits(chosen(device, step))
            else:
                (entry,) = step.entries
                (job,) = chosen(device, step)
                assert not device.fits([job]) and device.fits_rows(job, entry.rows)
            advance(ready, step, rng)


def test_one_row_too_large_runs_alone() -> None:
    """The device runs out of memory on it, which the loop turns into a failure with the bytes."""
    device = FakeDevice([Ready("a", (500, 400)), Ready("b", (8,), waited=99)], 300.0)
    assert create("aspen").fuse(FakeDevice([Ready("a", (500, 400))], 300.0)).entries == (("a", 1),)
    assert create("aspen").fuse(device).entries[0] == ("b", 1)


def test_aspen_pads_least_among_all_choices() -> None:
    """Equal rows, one class, memory for all: no set of k pads less."""
    rng = random.Random(3)
    policy = create("aspen:k=3")
    for _ in range(50):
        ready = [Ready(f"j{i}", (rng.randint(1, 50) * 8, 8)) for i in range(8)]
        device = FakeDevice(ready)

        def padding(jobs: list[Ready]) -> int:
            return device.computed(jobs) - sum(job.tokens for job in jobs)  # noqa: B023

        least = min(padding(list(jobs)) for jobs in combinations(ready, 3))
        assert padding(chosen(device, policy.fuse(device))) == least


def test_packed_aspen_balances_tokens() -> None:
    ready = [Ready(f"j{i}", (100 * (i + 1),)) for i in range(8)]
    device = FakeDevice(ready, padded=False)
    assert sum(job.tokens for job in chosen(device, create("aspen:k=4,budget_tokens=1000").fuse(device))) == 1000
    mean = chosen(device, create("aspen:k=4").fuse(device))
    assert abs(sum(job.tokens for job in mean) - 4 * 450) <= 200


def test_candidates_limits_the_classes_only() -> None:
    ready = [Ready(f"j{i}", (8 * (i + 1),), submit_s=float(i)) for i in range(10)]
    ready[9].waited = 99
    step = create("aspen:k=3,candidates=20").fuse(FakeDevice(ready))
    assert {entry.job_id for entry in step.entries} == {"j9", "j0", "j1"}


def test_predicted_stops_reorder() -> None:
    ready = [Ready(f"j{i}", (64,), submit_s=float(i), p_stop=0.9 if i == 4 else 0.0) for i in range(6)]
    step = create("aspen:k=2,candidates=30").fuse(FakeDevice(ready))
    assert {entry.job_id for entry in step.entries} == {"j4", "j0"}


def test_minpad_as_released() -> None:
    """Sorted descending, the window of k with the strictly least sum(L_max - L_i).

    Ties go to the longest window.
    """
    lengths = [500, 100, 104, 480, 300, 96, 484]
    ready = [Ready(f"j{i}", (length,), submit_s=float(i)) for i, length in enumerate(lengths)]
    step = create("aspen-minpad:k=3").fuse(FakeDevice(ready))
    assert [entry.job_id for entry in step.entries] == ["j2", "j1", "j5"]
    tied = [Ready(f"j{i}", (length,), submit_s=float(i)) for i, length in enumerate([100, 200, 100, 200])]
    assert [entry.job_id for entry in create("aspen-minpad:k=2").fuse(FakeDevice(tied)).entries] == ["j1", "j3"]


def longest_wait(policy: Policy, steps: int = 600) -> int:
    rng = random.Random(4)
    ready = [Ready(f"j{i}", (64,), submit_s=float(i)) for i in range(8)] + [Ready("odd", (2000,), submit_s=9.0)]
    worst = 0
    for _ in range(steps):
        step = policy.fuse(FakeDevice(list(ready)))
        advance(ready, step, rng, longest=80)
        for job in ready:
            job.lengths = (2000,) if job.job_id == "odd" else job.lengths
        worst = max(worst, *(job.waited for job in ready))
    return worst


def test_minpad_starves_and_aspen_does_not() -> None:
    assert longest_wait(create("aspen-minpad:k=4")) > 300
    assert longest_wait(create("aspen:k=4")) <= 16 + 9
    assert longest_wait(create("lorafusion:k=4")) <= 16


def test_fifo_window_is_the_first_in_arrival_order() -> None:
    ready = [Ready(f"j{i}", (64,), submit_s=float(9 - i), priority=i) for i in range(9)]
    step = create("aspen-fifo:k=3").fuse(FakeDevice(ready))
    assert [entry.job_id for entry in step.entries] == ["j8", "j7", "j6"]


def test_lorafusion_bins_are_balanced_and_take_turns() -> None:
    rng = random.Random(5)
    policy = create("lorafusion:k=4,budget_tokens=2000")
    ready = [Ready(f"j{i:02d}", (1,)) for i in range(12)]
    loads = []
    for _ in range(120):
        device = FakeDevice(list(ready), padded=False)
        step = policy.fuse(device)
        assert len(step.entries) <= 4 and max(ready, key=lambda job: job.waited).waited in {
            job.waited for job in chosen(device, step)
        }
        loads.append(sum(job.tokens for job in chosen(device, step)))
        advance(ready, step, rng)
    settled = loads[12:]
    assert max(settled) < 2000 * 1.2 and min(settled) > 400
