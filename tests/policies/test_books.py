"""What is kept up step by step equals what a slow reference computes from scratch.

Ledgers, the fleet's index, expected steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loramux_policies import Policy, PolicyError
from loramux_policies.loop.fleet import Fleet
from loramux_policies.loop.job import Job
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_policies.views import Entry, FusedStep
from loramux_simulator.micro_batches import ReadyRun

from ..simulator.workloads import BASES
from .bench import TYPES, bench_of

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MODES = [("packed", "shared"), ("padded", "shared"), ("packed", "separate")]


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("type_index", [0, 1], ids=TYPES)
def test_ledgers_add_up_to_the_cost_model(mode: tuple[str, str], type_index: int) -> None:
    bench = bench_of(*mode)
    model, jobs = bench.models[type_index], bench.fitting(type_index)

    @QUICK
    @given(st.lists(st.integers(0, len(jobs) - 1), min_size=1, max_size=30))
    def adds_up(moves: list[int]) -> None:
        ledger = bench.ledger(0, type_index)
        on: dict[str, Job] = {}
        for move in moves:
            mover = jobs[move]
            cost = mover.cost_on(type_index)
            if mover.job_id in on:
                ledger.remove(on.pop(mover.job_id), 1.0)
            else:
                foreseen = ledger.used_with(cost)
                ledger.add(mover, 1.0)
                on[mover.job_id] = mover
                assert ledger.used == pytest.approx(foreseen, rel=1e-12)
            costs = [other.cost_on(type_index) for other in on.values()]
            assert list(ledger.jobs) == list(on)
            assert ledger.used == pytest.approx(model.upper_bytes(costs), rel=1e-9, abs=1e-3)
            assert ledger.expected == pytest.approx(model.expected_bytes(costs), rel=1e-9, abs=1e-3)
            assert ledger.seats == len(on)
            twin = ledger.copy()
            assert (twin.used, twin.expected, twin.free) == (ledger.used, ledger.expected, ledger.free)
        for leaver in list(on.values()):
            ledger.remove(leaver, 1.0)
        assert ledger.used == ledger.expected == ledger.seats == 0.0

    adds_up()


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_the_index_never_hides_a_device(mode: tuple[str, str]) -> None:
    """Candidates, under every rule, are the devices that a look at each of them finds.

    That holds on the fleet and on forks of forks.
    """
    bench = bench_of(*mode)
    rules = ("best-fit", "worst-fit", "first-fit", "least-loaded")

    def same(fleet: Fleet, newcomer: Job) -> None:
        room = set()
        for ledger in fleet:
            cost = newcomer.costs[ledger.type_index]
            if cost is not None and ledger.has_room(cost):
                room.add(ledger.device_id)
                assert ledger.used_with(cost) <= ledger.capacity
            elif cost is not None:
                assert ledger.used_with(cost) > ledger.capacity or ledger.seats + 1.0 > ledger.seats_max
        for rule in rules:
            first = fleet.first(newcomer, rule)  # type: ignore[arg-type]
            found = list(fleet.candidates(newcomer, rule))  # type: ignore[arg-type]
            assert first == fleet.first(newcomer, rule) == next(iter(found), None)  # type: ignore[arg-type]
            assert set(found) == room, rule
            assert len(found) == len(room)
            free = [fleet[d].indexed for d in found]
            assert rule != "best-fit" or free == sorted(free)
            assert rule != "worst-fit" or free == sorted(free, reverse=True)
            assert rule != "first-fit" or found == sorted(found)
            assert rule != "least-loaded" or [fleet[d].seats for d in found] == sorted(fleet[d].seats for d in found)

    move = st.tuples(
        st.integers(0, len(bench.jobs) - 1), st.integers(0, 5), st.sampled_from(["put", "fork", "adopt", "drop"])
    )

    @QUICK
    @given(st.sampled_from([1.0, 2.0, float("inf")]), st.lists(move, min_size=1, max_size=30))
    def never(seats: float, moves: list[tuple[int, int, str]]) -> None:
        fleet = Fleet([bench.ledger(i, i // 3, seats) for i in range(6)])
        homes: dict[str, int] = {}
        fork: Fleet | None = None
        fork_homes: dict[str, int] = {}
        for number, device, kind in moves:
            mover = bench.jobs[number]
            if kind == "fork":
                fork, fork_homes = fleet.fork(), homes.copy()
            elif kind == "adopt" and fork is not None:
                fleet.adopt(fork)
                fork, homes = None, fork_homes
            elif kind == "drop":
                fork = None
            here, at = (fleet, homes) if fork is None else (fork, fork_homes)
            if mover.job_id in at:
                here.remove(mover, at.pop(mover.job_id), 1.0)
            else:
                cost = mover.costs[here[device].type_index]
                if cost is not None and here[device].has_room(cost):
                    here.add(mover, device, 1.0)
                    at[mover.job_id] = device
            for other in bench.jobs[number % 3 :: 9]:
                same(here, other)

    never()


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_the_expected_step_is_the_mean_of_drawn_steps(fusion: Any) -> None:
    """For sets of one to six jobs.

    Seconds and tokens, over 4,000 draws of all lengths, within four standard errors and 0.6%.
    """
    bench = bench_of(fusion, "shared")
    model = bench.models[1]
    rng = np.random.default_rng(3)
    for size in (1, 2, 3, 6):
        base = str(rng.choice(BASES))
        pool = [j.cost_on(1) for j in bench.fitting(1) if j.cost_on(1).base.key == base]
        costs = [pool[int(i)] for i in rng.integers(0, len(pool), size)]
        expected = model.expected_step(costs)
        draws = [cost.lengths.draw(rng, (4000, cost.rows)) for cost in costs]
        steps = [model.step_s(costs, [draw[i] for draw in draws]) for i in range(4000)]
        for mine, drawn in zip((expected.seconds, expected.computed_tokens), np.array(steps).T, strict=True):
            error = 4.0 * drawn.std() / 4000**0.5 + 0.006 * drawn.mean()
            assert mine == pytest.approx(drawn.mean(), abs=error)
        real = np.mean([sum(int(draw[i].sum()) for draw in draws) for i in range(4000)])
        assert expected.real_tokens == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("fusion", ["packed", "padded"])
def test_a_simulated_step_costs_what_the_cost_model_says(fusion: Any) -> None:
    """Step fidelity's own arithmetic, against the reference, at real lengths.

    Halved micro-batches too.
    """
    bench = bench_of(fusion, "shared")
    model = bench.models[1]
    rng = np.random.default_rng(5)
    for _ in range(30):
        base = str(rng.choice(BASES))
        pool = [j for j in bench.fitting(1) if j.cost_on(1).base.key == base]
        chosen = [pool[int(i)] for i in rng.choice(len(pool), int(rng.integers(1, 5)), replace=False)]
        device = FusedDevice(0, Policy(), padded=fusion == "padded")
        runs = []
        for one in chosen:
            run = ReadyRun(one, one.cost_on(1), int(rng.integers(100)))
            for _ in range(int(rng.integers(4))):
                run.advance(run.rows)
            device.add(run)
            runs.append(run)
        rows = [int(rng.integers(1, run.rows + 1)) for run in runs]
        step = FusedStep(base, tuple(Entry(run.job_id, n) for run, n in zip(runs, rows, strict=True)))
        cost = device.costs.cost(step)
        lengths = [np.array(run.lengths[:n]) for run, n in zip(runs, rows, strict=True)]
        seconds, computed = model.step_s([run.cost for run in runs], lengths)
        assert cost.seconds == pytest.approx(seconds, rel=1e-12)
        assert cost.computed_tokens == computed
        assert cost.real_tokens == sum(int(one.sum()) for one in lengths)


def test_a_step_that_over_commits_is_refused() -> None:
    bench = bench_of("packed", "shared")
    jobs = [j for j in bench.fitting(1) if j.cost_on(1).base.key == "llama-7b" and not j.cost_on(1).overridden][:2]

    class Greedy(Policy):
        name = "greedy"

        def fuse(self, device: Any) -> FusedStep:
            return device.step(device.ready)

    device = FusedDevice(0, Greedy(), padded=False)
    device.costs.ledger = bench.ledger(0, 1)
    for one in jobs:
        device.costs.ledger.add(one, 1.0)
        device.add(ReadyRun(one, one.cost_on(1), 0))
    device.costs.ledger.capacity = device.costs.ledger.own + device.costs.ledger.weights + device.costs.ledger.context
    with pytest.raises(PolicyError, match=r"greedy.*over-commits"):
        device.next_step()
