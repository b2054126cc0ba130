"""A measured record as the device profile: costs, books and decisions go by the allocation plan."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_profiles import planned as planned_module
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.step_plan import plan_bytes
from loramux_profiles.step_plan.structure import stored_params
from loramux_profiles.step_point import JobPoint, StepPoint
from loramux_simulator import simulate
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec, Trace

NAME = "cpu/llama-tiny"


@pytest.fixture(scope="module")
def device() -> DeviceProfile:
    return load_device(NAME)


def spec(i: int, rng: random.Random, **changes: object) -> JobSpec:
    method = rng.choice(["lora", "mixlora", "mola", "loramoe", "dynmole"])
    values: dict[str, object] = {
        "job_id": f"j{i}",
        "submit_s": float(i),
        "base_model": "llama-tiny",
        "method": method,
        "batch_size": rng.choice([2, 4, 8]),
        "seq_len": rng.choice([20, 60, 150]),
        "total_steps": 40.0,
        "rank": rng.choice([4, 8, 16]),
        "num_experts": None if method == "lora" else rng.choice([4, 8]),
        "target_modules": rng.choice(["all-linear", "mlp"]),
        "dropout": rng.choice([0.0, 0.05]),
        "dtype": "fp32",
    }
    return JobSpec(**{**values, **changes})  # type: ignore[arg-type]


def job(i: int, model: CostModel, rng: random.Random) -> Job:
    one = spec(i, rng)
    cost = model.job_cost(one)
    made = Job.__new__(Job)
    made.spec, made.job_id, made.costs = one, one.job_id, (cost,)  # type: ignore[misc]
    return made


def ledger(model: CostModel, capacity: float = 1e12) -> Ledger:
    return Ledger(
        0, 0, capacity=capacity, margin=model.upper_margin, padded=False, separate=False, seats_max=float("inf")
    )


def test_a_job_costs_what_the_fit_says(device: DeviceProfile) -> None:
    model, fitted = CostModel(device), device.fitted
    assert fitted is not None
    cost = model.job_cost(spec(0, random.Random(4), method="lora", num_experts=None, rank=12))
    assert cost.adapter is not None
    assert cost.own_bytes == 16 * stored_params(fitted.shape, cost.adapter)
    # four rows of equal length, every token learned: the time model's own answer
    lengths = (60,) * cost.rows
    point = JobPoint(adapter=cost.adapter, lengths=lengths, labels=59 * cost.rows)
    squares = sum(n * n for n in lengths)
    ours = cost.base.read_s + cost.token_s * sum(lengths) + cost.square_s * squares + cost.step_s
    assert ours == pytest.approx(fitted.time.seconds(StepPoint(jobs=(point,))), rel=1e-9)


def test_books_are_the_plan_of_the_set(device: DeviceProfile) -> None:
    model = CostModel(device)
    rng = random.Random(0)
    books = ledger(model)
    inside: list[Job] = []
    for i in range(60):
        if inside and rng.random() < 0.4:
            out = inside.pop(rng.randrange(len(inside)))
            books.remove(out, 1.0)
        else:
            new = job(i, model, rng)
            assert books.used_with(new.cost_on(0)) == pytest.approx(
                model.upper_bytes([*(j.cost_on(0) for j in inside), new.cost_on(0)])
            )
            inside.append(new)
            books.add(new, 1.0)
        costs = [j.cost_on(0) for j in inside]
        assert books.used == pytest.approx(model.upper_bytes(costs) if costs else 0.0)
    full = ledger(model, capacity=books.used)
    for one in inside[:-1]:
        full.add(one, 1.0)
    assert full.has_room(inside[-1].cost_on(0))
    full.capacity -= 1.0
    assert not full.has_room(inside[-1].cost_on(0))


def test_a_set_needs_less_than_its_jobs_one_by_one(device: DeviceProfile) -> None:
    """Temporaries of one job's kernels are gone when the next one's are made.

    The reason to ask about sets.
    """
    model = CostModel(device)
    rng = random.Random(1)
    costs = [job(i, model, rng).cost_on(0) for i in range(6)]
    planned = costs[0].base.planned
    assert planned is not None
    together = planned.admitted(costs)
    assert together < sum(cost.dynamic_q for cost in costs)
    assert together == planned.admitted(costs[::-1])


def test_rows_as_admitted_are_halved_from_the_first_longest_on(device: DeviceProfile) -> None:
    def one_by_one(rows: int, longest: int, tokens: int) -> tuple[int, ...]:
        lengths = [longest] * (tokens // longest) + ([tokens % longest] if tokens % longest else [])
        while len(lengths) < rows and max(lengths) > 1:
            i = lengths.index(max(lengths))
            lengths[i : i + 1] = [lengths[i] // 2, lengths[i] - lengths[i] // 2]
        return tuple(lengths)

    rng = random.Random(3)
    cost = CostModel(device).job_cost(spec(0, rng, method="lora", num_experts=None, rank=12))
    planned = cost.base.planned
    assert planned is not None
    for _ in range(200):
        rows, longest = rng.randint(1, 40), rng.randint(1, 100)
        tokens = rng.randint(longest, rows * longest)
        job = replace(cost, rows=rows, length_q=longest, tokens_q=float(tokens))
        assert planned.admitted_point((job,)).jobs[0].lengths == one_by_one(rows, longest, tokens)


def test_many_rows_are_halved_in_few_passes(device: DeviceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass for each row looked 16,384 times for the longest, and took 3 s."""
    looked: list[int] = []
    monkeypatch.setattr(planned_module, "max", lambda *given: looked.append(1) or max(*given), raising=False)
    one = spec(0, random.Random(4), method="lora", num_experts=None, rank=12)
    CostModel(device).job_cost(replace(one, batch_size=4096, seq_len=512.0))
    assert 0 < len(looked) < 1000


def test_planned_memory_is_the_scaled_plan(device: DeviceProfile) -> None:
    fitted = device.fitted
    assert fitted is not None
    model = CostModel(device)
    cost = job(0, model, random.Random(2)).cost_on(0)
    assert cost.adapter is not None
    twice = PlannedMemory(fitted.shape, dtype="fp32", exact=True, scale=2.0, offset_bytes=7.0)
    point = StepPoint(jobs=(JobPoint(adapter=cost.adapter, lengths=(30, 5), labels=33),))
    assert twice.step([(cost, (30, 5))]) == pytest.approx(2 * plan_bytes(fitted.shape, point) + 7)


@pytest.mark.parametrize("fidelity", ["rate", "step"])
def test_simulated_by_a_measured_profile(device: DeviceProfile, fidelity: str) -> None:
    rng = random.Random(3)
    trace = Trace(name="planned", jobs=[spec(i, rng) for i in range(12)])
    result = simulate(trace, "aspen", devices=[device], fidelity=fidelity)
    assert result.summary["completed"] == 12
    assert result.origin == "fitted"
    assert result.summary["memory_peak_bytes"] < device.memory_bytes


def test_another_model_or_precision_is_refused(device: DeviceProfile) -> None:
    rng = random.Random(0)
    with pytest.raises(UsageError, match="of llama-tiny in fp32, not of llama-7b in fp32"):
        CostModel(device).job_cost(spec(0, rng, base_model="llama-7b"))
    with pytest.raises(UsageError, match="not of llama-tiny in bf16"):
        CostModel(device).job_cost(spec(0, rng, dtype="bf16"))
    with pytest.raises(UsageError, match="packed"):
        CostModel(device, fusion="padded")
    other = CostModel(load_device(NAME, allow_other=True))
    assert other.job_cost(spec(0, rng, base_model="llama-7b")).adapter is None
    assert other.job_cost(spec(0, rng)).adapter is not None


def test_an_ideal_device_has_no_plan(device: DeviceProfile) -> None:
    assert CostModel(device, ideal=True).job_cost(spec(0, random.Random(0))).base.planned is None
