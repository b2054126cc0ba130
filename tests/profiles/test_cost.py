"""CostModel: micro-batches, memory of sets, ideal mode, overrides, durations and caches."""

from __future__ import annotations

import gc
import timeit
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_profiles.cost import CostModel, DoesNotFit, Fusion, Implementation, declared_micro_steps
from loramux_profiles.curves import load_curve
from loramux_profiles.devices import load_device
from loramux_profiles.memory import round_up
from loramux_profiles.work import JobCost
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec

A100 = load_device("a100-80g")
FUSIONS: tuple[Fusion, ...] = ("packed", "padded")


def spec(**fields: Any) -> JobSpec:
    values = {
        "job_id": "j",
        "submit_s": 0,
        "base_model": "llama-2-7b",
        "method": "lora",
        "batch_size": 4,
        "seq_len": 200,
    }
    if not fields.keys() & {"duration_s", "num_samples"}:
        values["total_steps"] = 100
    return JobSpec(**{**values, **fields})


specs = st.builds(
    spec,
    base_model=st.sampled_from(["llama-2-7b", "tinyllama-1.1b", "smollm2-135m"]),
    method=st.sampled_from(["lora", "mixlora", "mola", "dynmole"]),
    batch_size=st.integers(1, 16),
    seq_len=st.sampled_from([50.0, 120.5, 300.0]),
    rank=st.sampled_from([8, 16, 64]),
    dtype=st.sampled_from(["bf16", "fp32"]),
    recompute=st.booleans(),
    length_dist=st.sampled_from([None, "constant", "alpaca"]),
    mem_bytes=st.none() | st.integers(1, 10**10),
)


def test_micro_batch_is_the_largest_half_that_fits() -> None:
    model = CostModel(A100)
    job = spec(batch_size=64, seq_len=512)
    rows = model.micro_batch(job)
    assert isinstance(rows, int) and rows < 64
    assert model.upper_bytes([model.job_cost(job)]) <= model.capacity_bytes
    more = spec(batch_size=64, seq_len=512, micro_batch_size=2 * rows)
    assert model.micro_batch(more) == rows  # a start that does not fit is halved too
    small = spec(batch_size=64, seq_len=512, micro_batch_size=1)
    assert model.micro_batch(small) == 1
    assert model.job_cost(small).accumulation == 64


def test_odd_batches_are_halved_down_and_accumulate_fractions() -> None:
    model = CostModel(A100)
    cost = model.job_cost(spec(batch_size=40, seq_len=1000))
    assert cost.rows in (20, 10, 5, 2, 1)
    assert cost.accumulation * cost.rows == pytest.approx(40)


def test_what_fits_nowhere_says_how_much_it_needs() -> None:
    model = CostModel(load_device("l4"))
    found = model.micro_batch(spec(base_model="llama-13b"))
    assert isinstance(found, DoesNotFit)
    assert found.have_bytes == 23 << 30 and found.need_bytes > found.have_bytes
    assert model.job_cost(spec(base_model="llama-13b")).rows == 1
    held = model.micro_batch(spec(mem_bytes=24 << 30))
    assert held == DoesNotFit(24 << 30, 23 << 30)


def test_unknown_names_are_usage_errors() -> None:
    model = CostModel(A100)
    with pytest.raises(UsageError, match="did you mean"):
        model.job_cost(spec(base_model="lama-7b"))
    with pytest.raises(UsageError, match="length distribution"):
        model.job_cost(spec(length_dist="alpaka"))


def test_memory_of_one_job_is_the_sum_of_its_parts() -> None:
    model = CostModel(A100)
    cost = model.job_cost(spec())
    base = cost.base
    static = base.weights_bytes + base.context_bytes + cost.own_bytes
    dynamic = base.dynamic_bytes + cost.token_bytes * cost.tokens_q
    assert model.expected_bytes([cost]) == pytest.approx(static + dynamic)
    assert model.upper_bytes([cost]) == pytest.approx(static + dynamic * 1.1)
    assert cost.own_bytes == 18 * 39_976_960 and cost.state_bytes == 16 * 39_976_960
    assert base.weights_bytes == 2 * 6_738_415_616
    assert model.expected_bytes([]) == 0


def test_base_keys_and_shared_copies() -> None:
    model = CostModel(A100)
    bf16, fp32 = model.job_cost(spec()), model.job_cost(spec(dtype="fp32"))
    assert bf16.base.key == "llama-2-7b" and fp32.base.key == "llama-2-7b:fp32"
    other = model.job_cost(spec(rank=8))
    assert other.base is bf16.base
    assert model.job_cost(spec(base_model="meta-llama/Llama-2-7b-hf")).base.key == "llama-2-7b"
    two = model.expected_bytes([bf16, other])
    assert two < model.expected_bytes([bf16]) + model.expected_bytes([other]) - bf16.base.weights_bytes


def test_two_bases_take_turns() -> None:
    model = CostModel(A100)
    a, b = model.job_cost(spec()), model.job_cost(spec(base_model="tinyllama-1.1b"))
    both = model.expected_bytes([a, b])
    dynamic = [c.base.dynamic_bytes + c.token_bytes * c.tokens_q for c in (a, b)]
    weights = a.base.weights_bytes + b.base.weights_bytes + a.base.context_bytes
    assert both == pytest.approx(weights + a.own_bytes + b.own_bytes + max(dynamic))


def test_separate_copies_add_up_and_share_the_rate_curve() -> None:
    model = CostModel(A100, copies="separate")
    cost = model.job_cost(spec())
    assert model.upper_bytes([cost] * 3) == pytest.approx(3 * model.upper_bytes([cost]))
    assert model.rates is not None and model.rates.phi(4) == pytest.approx(1.067)
    assert CostModel(A100).rates is None
    assert CostModel(A100, rates=load_curve("free")).rates is load_curve("free")


@given(
    st.lists(specs, min_size=1, max_size=5), specs, st.sampled_from(FUSIONS), st.sampled_from(["shared", "separate"])
)
@settings(max_examples=60, deadline=None)
def test_one_job_more_never_needs_less(jobs: list[JobSpec], more: JobSpec, fusion: Fusion, copies: Any) -> None:
    model = CostModel(A100, fusion=fusion, copies=copies)
    costs = [model.job_cost(job) for job in jobs]
    before, after = model.upper_bytes(costs), model.upper_bytes([*costs, model.job_cost(more)])
    assert after >= before >= model.expected_bytes(costs)
    assert model.upper_bytes(costs[::-1]) == pytest.approx(before)


@given(specs, st.sampled_from(FUSIONS))
@settings(max_examples=60, deadline=None)
def test_longer_and_larger_need_more(job: JobSpec, fusion: Fusion) -> None:
    from dataclasses import replace

    if job.mem_bytes is not None:
        return
    model = CostModel(A100, fusion=fusion)

    def need(**change: Any) -> float:
        return model.upper_bytes(
            [model.job_cost(replace(job, micro_batch_size=job.batch_size, batch_size=16, **change))]
        )

    here = need()
    assert (
        need(seq_len=job.seq_len * 2) > here
        or model.job_cost(replace(job, seq_len=job.seq_len * 2)).rows < job.batch_size
    )
    assert need(rank=job.rank * 2) > here or model.job_cost(replace(job, rank=job.rank * 2)).rows < job.batch_size
    recomputed = model.job_cost(replace(job, recompute=True))
    kept = model.job_cost(replace(job, recompute=False))
    assert recomputed.token_bytes < kept.token_bytes and recomputed.token_s > kept.token_s


@given(st.lists(specs.filter(lambda s: s.mem_bytes is None), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_padded_memory_is_that_of_the_longest_row(jobs: list[JobSpec]) -> None:
    model = CostModel(A100, fusion="padded")
    costs = [model.job_cost(job) for job in jobs]
    groups: dict[str, list[JobCost]] = {}
    for cost in costs:
        groups.setdefault(cost.base.key, []).append(cost)
    dynamic = []
    for group in groups.values():  # as a ledger adds it up: sums that are multiplied by one length
        length = max(round_up(cost.length_q) for cost in group)
        by_token = sum(cost.rows * cost.token_bytes for cost in group)
        dynamic.append(group[0].base.dynamic_bytes + by_token * length)
    static = sum(c.own_bytes for c in costs) + sum(g[0].base.weights_bytes for g in groups.values())
    assert model.expected_bytes(costs) == pytest.approx(static + costs[0].base.context_bytes + max(dynamic))


@pytest.mark.parametrize("ideal", [False, True])
def test_mem_bytes_is_all_that_a_job_is_charged(ideal: bool) -> None:
    model = CostModel(A100, ideal=ideal)
    costs = [model.job_cost(spec(mem_bytes=n)) for n in (1, 10**9, 6 << 30)]
    assert all(cost.overridden for cost in costs)
    assert model.upper_bytes(costs) == 1 + 10**9 + (6 << 30)
    assert costs[0].rows == 4 and model.micro_batch(spec(mem_bytes=1)) == 4
    assert costs[0].solo_step_s == costs[1].solo_step_s
    assert model.job_cost(spec()).overridden is False


def test_ideal_has_no_overhead_and_no_memory() -> None:
    model = CostModel(load_device("l4"), ideal=True)
    assert model.capacity_bytes == 24 << 30 and model.upper_margin == 0
    job = spec(base_model="llama-13b", batch_size=4096, seq_len=2000)
    cost = model.job_cost(job)
    assert model.micro_batch(job) == 4096 and cost.rows == 4096
    assert model.upper_bytes([cost] * 5) == 0
    assert cost.load_s == cost.pause_s == cost.base.load_s == 0
    assert cost.solo_step_s > 0
    assert CostModel(load_device("l4")).capacity_bytes == 23 << 30


def test_charges() -> None:
    cost = CostModel(A100).job_cost(spec())
    assert cost.pause_s == pytest.approx(16 * 39_976_960 / 24e9)
    assert cost.load_s == pytest.approx(0.1 + 4 * 39_976_960 / 24e9)
    assert cost.base.load_s == pytest.approx(2 * 6_738_415_616 / 2e9)


@given(st.floats(1e-3, 1e9), specs, st.sampled_from(FUSIONS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_duration_is_met_on_the_reference_device(seconds: float, job: JobSpec, fusion: Fusion, ideal: bool) -> None:
    timed = spec(duration_s=seconds, base_model=job.base_model, batch_size=job.batch_size, seq_len=job.seq_len)
    cost = CostModel(A100, fusion=fusion, ideal=ideal).job_cost(timed)
    assert declared_micro_steps(timed, cost) * cost.solo_step_s == pytest.approx(seconds, rel=1e-12)
    other = CostModel(load_device("h100-80g"), fusion=fusion, ideal=ideal).job_cost(timed)
    here = declared_micro_steps(timed, other, cost)
    optimizer_steps = here / other.accumulation
    assert optimizer_steps == pytest.approx(declared_micro_steps(timed, cost) / cost.accumulation, rel=1e-12)


def test_declared_steps_times_accumulation() -> None:
    model = CostModel(A100)
    job = spec(batch_size=16, micro_batch_size=4)
    assert declared_micro_steps(job, model.job_cost(job)) == 400
    epochs = spec(num_samples=1000, epochs=3, batch_size=16, micro_batch_size=4)
    assert declared_micro_steps(epochs, model.job_cost(epochs)) == 4 * 188


def test_equal_jobs_share_one_cost() -> None:
    model = CostModel(A100)
    first = model.job_cost(spec())
    assert (
        model.job_cost(spec(job_id="other", submit_s=7, priority=3, total_steps=9, dataset="mine", dropout=0.3))
        is first
    )
    assert model.job_cost(spec(seq_len=201)) is not first
    assert model.job_cost(spec(dataset="alpaca")) is not first
    assert model.job_cost(spec(dataset="alpaca")) is model.job_cost(spec(length_dist="alpaca")) or (
        model.job_cost(spec(dataset="alpaca")).lengths is model.job_cost(spec(length_dist="alpaca")).lengths
    )


def test_a_known_job_costs_microseconds() -> None:
    model = CostModel(A100)
    job = spec()
    model.job_cost(job)
    gc.collect()
    best = min(timeit.repeat(lambda: model.job_cost(job), number=2000, repeat=5)) / 2000
    assert best < 10e-6  # about 0.4 us here; the bound leaves room for a loaded machine


def test_dynmole_moves_only_on_the_skip_path() -> None:
    job = spec(method="dynmole")
    dense = CostModel(A100)
    assert dense.cost_at(job, 0.0) is dense.cost_at(job, 1.0) is dense.job_cost(job)
    skip = CostModel(A100, implementation=Implementation(expert_path="skip"))
    early, mean, late = skip.cost_at(job, 0.0), skip.job_cost(job), skip.cost_at(job, 1.0)
    assert early.token_s > mean.token_s > late.token_s
    assert early.rows == late.rows == mean.rows
    lora = spec()
    assert skip.cost_at(lora, 0.5) is skip.job_cost(lora)


def test_implementations_cost_what_they_keep() -> None:
    job = spec(dropout=0.1)
    plain = CostModel(A100).job_cost(job)
    stored = CostModel(A100, implementation=Implementation(stored_dropout=True))
    assert stored.job_cost(job).token_bytes > plain.token_bytes
    assert stored.job_cost(spec(dropout=0.0)).token_bytes == plain.token_bytes
    whole = CostModel(A100, implementation=Implementation(chunked_loss=False)).job_cost(job)
    assert whole.token_bytes - plain.token_bytes == pytest.approx(12 * 32000)
    assert whole.base.dynamic_bytes < plain.base.dynamic_bytes
    eager = CostModel(A100, implementation=Implementation(eager_attention=True)).job_cost(job)
    assert eager.square_bytes > 0 == plain.square_bytes
