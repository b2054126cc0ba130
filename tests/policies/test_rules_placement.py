"""What each placement rule is for, on a handful of jobs."""

from __future__ import annotations

import random
from itertools import pairwise, permutations

import numpy as np
import pytest

from loramux_policies import create
from loramux_policies.loop.job import Job
from loramux_policies.loop.live_view import LiveView
from loramux_policies.rules._highs import Limits, zero_one_program
from loramux_policies.rules.gittins import Gittins
from loramux_policies.rules.max_min import MaxMin

from .fake_backend import FakeBackend, base, free, job, play


def starts(played: FakeBackend) -> dict[str, float]:
    return {job_id: round(t_s, 6) for job_id, t_s in played.started_s.items()}


def test_fifo_is_strict_and_skips_on_demand() -> None:
    jobs = [job("a", 0, 10, 6), job("b", 1, 10, 6), job("c", 2, 3, 2)]
    assert starts(play(create("fifo"), jobs, gib=8.0, phi=free)) == {"a": 0, "b": 10, "c": 10}
    jobs = [job("a", 0, 10, 6), job("b", 1, 10, 6), job("c", 2, 3, 2)]
    assert starts(play(create("fifo-skip"), jobs, gib=8.0, phi=free)) == {"a": 0, "b": 10, "c": 2}


def test_best_fit_packs_and_fifo_spreads() -> None:
    for name, used in (("best-fit", 1), ("fifo", 3)):
        devices: set[int | None] = set()

        def look(view: LiveView, _: object) -> None:
            devices.update(view.device_of(job_id) for job_id in view._cluster.running)  # noqa: B023

        play(create(name), [job(f"j{i}", i, 50, 2) for i in range(3)], devices=3, gib=8.0, on_plan=look)
        assert len(devices - {None}) >= used and (used == 3 or len(devices - {None}) == 1)


def test_copies_limit_the_seats() -> None:
    jobs = [job(f"j{i}", 0, 10, 1, of=base("m", 3.0)) for i in range(6)]
    assert sorted(starts(play(create("exclusive"), jobs, devices=2, gib=8.0)).values()) == [0, 0, 10, 10, 20, 20]
    jobs = [job(f"j{i}", 0, 10, 1, of=base("m", 3.0)) for i in range(6)]
    # two copies of 3 + 1 GiB fill a device of 8: memory bounds it before k = 4 does
    assert sorted(starts(play(create("separate"), jobs, gib=8.0, phi=free)).values()) == [0, 0, 10, 10, 20, 20]
    jobs = [job(f"j{i}", 0, 10, 1, of=base("m", 3.0)) for i in range(6)]
    assert sorted(starts(play(create("ps"), jobs, gib=8.0, phi=free)).values()) == [0, 0, 0, 0, 0, 10]


@pytest.mark.parametrize("name", ["priority", "aspen-priority", "aspen"])
def test_only_strictly_lower_classes_make_way(name: str) -> None:
    def jobs(second: int) -> list[Job]:
        return [job("a", 0, 10, 5), job("b", 1, 4, 5, priority=second), job("c", 2, 1, 5, priority=0)]

    same = play(create(name), jobs(0), gib=8.0)
    assert same.pauses == [] and starts(same) == {"a": 0, "b": 10, "c": 14}
    higher = play(create(name), jobs(1), gib=8.0)
    assert higher.pauses == [(1, "a")] and starts(higher)["b"] == 1 and higher.finished_s["a"] == pytest.approx(14)


def test_nobody_is_paused_in_vain() -> None:
    """The largest class-0 resident alone does not make room, two do, and the third stays."""
    low = [job("a", 0, 50, 2), job("b", 0, 50, 2), job("c", 0, 50, 2)]
    played = play(create("priority"), [*low, job("x", 5, 3, 5, priority=1)], gib=8.0)
    assert [job_id for _, job_id in played.pauses] == ["c", "b"] and starts(played)["x"] == 5
    low = [job("a", 0, 50, 6), job("b", 0, 50, 1, priority=1)]
    played = play(create("priority"), [*low, job("x", 5, 3, 8, priority=1)], gib=8.0)
    assert played.pauses == []


def test_many_at_once_each_displace_one() -> None:
    old = [job(f"a{i:02d}", 0, 50) for i in range(20)]
    new = [job(f"b{i:02d}", 5, 1) for i in range(20)]
    played = play(create("srtf"), [*old, *new], devices=20, seats=1.0)
    assert len(played.pauses) == 20 and all(starts(played)[f"b{i:02d}"] == 5 for i in range(20))


def test_a_device_too_small_is_no_obstacle() -> None:
    """The worst resident sits on a device that the arrival cannot use; the next worst makes way."""
    old = [job("a", 0, 40, 7, fits_type=(True, False)), job("b", 0, 50, 3, fits_type=(True, True))]
    played = play(create("srtf"), [*old, job("x", 1, 5, 6, fits_type=(True, False))], types=[0, 1], gib=8.0)
    assert played.pauses == [(1, "a")] and starts(played)["x"] == 1


def test_ageing_lifts_the_old_past_later_arrivals() -> None:
    def order(ageing_per_s: float) -> list[str]:
        jobs = [job("a", 0, 10), job("old", 1, 10), *(job(f"n{i}", 2 + i, 10, priority=0) for i in range(2))]
        jobs.append(job("high", 9, 10, priority=1))
        rule = create(f"priority:ageing_per_s={ageing_per_s}")
        began = starts(play(rule, jobs, seats=1.0))
        return sorted(began, key=lambda job_id: began[job_id])

    assert order(0.0) == ["a", "high", "old", "n0", "n1"]
    assert order(1.0) == ["a", "old", "n0", "n1", "high"]


def backfill(second: Job, name: str = "easy") -> FakeBackend:
    """One device of 8 GiB.

    A holds 5 for 10 s, the head wants 6, then the job that may be backfilled.
    """
    return play(create(name), [job("a", 0, 10, 5), job("head", 1, 10, 6), second], gib=8.0, phi=free)


def test_easy_backfills_in_memory_and_time() -> None:
    assert starts(backfill(job("x", 2, 3, 2)))["x"] == 2  # ends before
    assert starts(backfill(job("x", 2, 30, 2)))["x"] == 2  # fits beside the head
    assert starts(backfill(job("x", 2, 30, 3)))["x"] == 20  # would be in its way
    assert starts(backfill(job("x", 2, 3, 3)))["x"] == 2
    for second in (job("x", 2, 3, 2), job("x", 2, 30, 3), job("x", 2, 7.9, 3)):
        assert starts(backfill(second))["head"] == 10


def test_easy_reserves_devices_for_gangs() -> None:
    jobs = [job("a", 0, 10), job("gang", 1, 5, num_gpus=2), job("long", 2, 20), job("short", 3, 4)]
    played = starts(play(create("easy"), jobs, devices=2, seats=1.0))
    assert played == {"a": 0, "gang": 10, "long": 15, "short": 3}


def test_easy_leaves_slowed_devices_alone() -> None:
    jobs = [job("a", 0, 10, 2), job("b", 0, 10, 2), job("head", 1, 10, 6), job("x", 2, 1, 2)]
    assert starts(play(create("easy"), jobs, gib=8.0))["x"] >= 20
    assert starts(play(create("easy:slowdown=9"), jobs_again(), gib=8.0))["x"] == 2
    assert starts(play(create("easy:slowdown=0"), jobs_again(), gib=8.0, phi=free))["x"] >= 10


def jobs_again() -> list[Job]:
    return [job("a", 0, 10, 2), job("b", 0, 10, 2), job("head", 1, 10, 6), job("x", 2, 1, 2)]


def test_easy_never_delays_the_head_where_running_together_is_free() -> None:
    for seed in range(8):
        rng = random.Random(seed)

        def jobs() -> list[Job]:
            return [job("a", 0, 10, 4), job("b", 0, 14, 3), job("head", 1, 5, 7), *rest]  # noqa: B023

        rest = [job(f"x{i}", 2 + i, rng.uniform(0.5, 20), rng.choice([1, 2, 3])) for i in range(8)]
        alone = starts(play(create("fifo"), jobs(), gib=8.0, phi=free))["head"]
        rest = [job(j.job_id, j.spec.submit_s, j.true_steps, j.costs[0].own_bytes / 2**30) for j in rest if j.costs[0]]
        assert starts(play(create("easy"), jobs(), gib=8.0, phi=free))["head"] == alone


def test_dot_product_puts_the_large_where_there_is_room() -> None:
    jobs = [job("a", 0, 50, 5, tokens=8000.0), job("b", 1, 50, 3, tokens=100.0), job("c", 2, 50, 3, tokens=8000.0)]
    seen: dict[str, int | None] = {}

    def look(view: LiveView, _: object) -> None:
        seen.update({job_id: view.device_of(job_id) for job_id in view._cluster.running})

    play(create("dot-product"), jobs, devices=2, gib=8.0, on_plan=look)
    assert seen["a"] != seen["c"]


def mean_response(order: list[Job], gib: float) -> float:
    """List scheduling in this order with skipping, where running together is free."""
    jobs = [job(f"{i}", 0, j.true_steps, j.need_bytes / 2**30) for i, j in enumerate(order)]
    played = play(create("fifo-skip:window=99"), jobs, gib=gib, phi=free)
    return float(np.mean(list(played.finished_s.values())))


def test_smallest_memory_time_is_near_the_best_order() -> None:
    ratios: dict[str, list[float]] = {"smallest-memory-time": [], "sjf:window=99": [], "fifo-skip": []}
    for seed in range(6):
        rng = random.Random(seed)
        made = [(rng.uniform(1, 10), rng.choice([1.0, 2.0, 4.0, 6.0])) for _ in range(5)]
        best = min(mean_response(list(order), 8.0) for order in permutations([job("x", 0, s, g) for s, g in made]))
        for name, found in ratios.items():
            jobs = [job(f"j{i}", 0, s, g) for i, (s, g) in enumerate(made)]
            ours = np.mean(list(play(create(name), jobs, gib=8.0, phi=free).finished_s.values()))
            found.append(float(ours) / best)
    means = {name: float(np.mean(found)) for name, found in ratios.items()}
    assert means["smallest-memory-time"] < 1.06 < means["fifo-skip"]


def test_tiresias_preempts_lower_queues_only() -> None:
    jobs = [job("a", 0, 30), job("b", 2, 3), job("c", 3, 3)]
    played = play(create("tiresias:thresholds=5"), jobs, seats=1.0)
    assert [job_id for _, job_id in played.pauses] == ["a"] and played.pauses[0][0] == pytest.approx(5.0, rel=1e-4)
    assert starts(played)["b"] == pytest.approx(5.0, rel=1e-4)


def test_las_needs_a_quantum_where_switching_costs() -> None:
    def pauses(policy: str, pause_s: float) -> int:
        jobs = [job(f"j{i}", i / 10, 400, pause_s=pause_s) for i in range(3)]
        return len(play(create(policy), jobs, seats=1.0).pauses)

    assert pauses("las", 0.01) < pauses("las:growth=0", 0.01) < pauses("las:quantum_s=10,growth=0", 0.01)
    assert pauses("las:growth=0", 2.0) < pauses("las:growth=0", 0.01)


def test_gittins_index() -> None:
    flat = Gittins(law="weibull", shape=1.0, median_s=np.log(2.0)).index
    # exponential: the hazard rate, at every age
    assert flat == pytest.approx([1.0] * len(flat), rel=0.02)
    falling = Gittins(law="weibull", shape=0.5).index
    assert all(a > b for a, b in pairwise(falling))
    rising = Gittins(law="weibull", shape=3.0, median_s=100.0).index
    assert all(a <= b * 1.001 for a, b in pairwise(rising))
    usual = Gittins().index
    peak = usual.index(max(usual))
    assert 0 < peak < len(usual) - 5 and usual[-1] < usual[peak] / 50


def test_max_min_shares() -> None:
    jobs = [job("a", 0, 50, 2, user="u"), job("b", 0, 50, 2, user="u"), job("c", 0, 50, 2, user="v")]
    seen: list[list[float]] = []

    def look(view: LiveView, _: object) -> None:
        everyone = [*view.residents(0), *view.waiting(9)]
        everyone.sort(key=lambda view: view.job_id)
        seen.append(MaxMin(by="job").shares(view, everyone) + MaxMin(by="user").shares(view, everyone))

    play(create("fifo"), jobs, gib=4.0, phi=free, on_plan=look, until_s=0.5)
    by_job, by_user = seen[0][:3], seen[0][3:]
    assert by_job == pytest.approx([2 / 3] * 3, abs=1e-6)  # 4 of the 6 GiB
    assert by_user[0] + by_user[1] == pytest.approx(by_user[2], abs=1e-6)


@pytest.mark.parametrize("name", ["max-min:round_s=5", "finish-time-fairness:lease_s=5"])
def test_rounds_share_the_seat(name: str) -> None:
    """Everybody has run long before the first come, first served order would have reached them.

    Gangs are left alone.
    """
    jobs = [job(f"j{i}", 0, 100) for i in range(4)]
    played = play(create(name), jobs, seats=1.0)
    assert max(starts(played).values()) <= 20 and played.pauses
    gang = [job("gang", 0, 30, num_gpus=2), *(job(f"j{i}", 1, 10) for i in range(4))]
    played = play(create(name), gang, devices=2, seats=1.0)
    assert "gang" not in {job_id for _, job_id in played.pauses} and len(played.finished_s) == 5


def test_lookahead_keeps_room_for_the_urgent() -> None:
    """Waiting 2 s for the short job's room beats filling it with the long one."""
    jobs = [job("a", 0, 2, 4), job("long", 1, 100, 4), job("wide", 1, 1, 8)]
    assert starts(play(create("fifo-skip"), jobs, gib=8.0, phi=free))["wide"] == 101
    jobs = [job("a", 0, 2, 4), job("long", 1, 100, 4), job("wide", 1, 1, 8)]
    assert starts(play(create("lookahead-milp"), jobs, gib=8.0, phi=free)) == {"a": 0, "wide": 2, "long": 3}


def test_solvers_are_silent(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    limits = Limits()
    for _ in range(12):
        limits.add([(i, float(rng.uniform(1, 9))) for i in range(40)], 40.0)
    solution = zero_one_program(-rng.uniform(1, 9, 40), limits, 50)
    assert solution is not None and set(np.unique(solution)) <= {0.0, 1.0}
    again = zero_one_program(np.array([1.0]), _infeasible(), 5)
    assert again is None
    assert capfd.readouterr() == ("", "")


def _infeasible() -> Limits:
    limits = Limits()
    limits.add([(0, 1.0)], -1.0)
    return limits
