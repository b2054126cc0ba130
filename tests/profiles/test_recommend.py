"""`recommend` against every possibility: its largest micro-batch and most jobs.

What it says at the edges.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from loramux_profiles import recommend as module
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_profiles.recommend import largest_micro_batch, most_that, recommend
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec


def job(job_id: str = "job", **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "base_model": "tinyllama-1.1b",
        "method": "lora",
        "batch_size": 16,
        "seq_len": 300,
        "total_steps": 1,
    }
    return JobSpec(job_id=job_id, submit_s=0, **{**fields, **changes})


def limited(name: str, gib: float) -> DeviceProfile:
    """A device with so much memory, nothing of it reserved."""
    device = load_device(name)
    changed = {"memory_bytes": gib * 2**30, "reserved_bytes": 0.0}
    parameters = {
        key: p.model_copy(update={"value": changed[key]}) if key in changed else p
        for key, p in device.parameters.items()
    }
    return device.model_copy(update={"parameters": parameters})


CASES = [
    (device, gib, spec)
    for device, gib in (("a100-80g", 6.0), ("l4", 4.0), ("rtx-3090", 9.5))
    for spec in (
        job(),
        job(method="mixlora", seq_len=64, batch_size=24),
        job(method="dynmole", rank=8, seq_len=5, batch_size=70),
        job(base_model="smollm2-135m", seq_len=1, batch_size=100, recompute=True),
        job(base_model="smollm2-135m", method="mola", num_experts=4, seq_len=700, batch_size=40),
        job(base_model="smollm2-135m", target_modules="qv", seq_len=1900, dtype="fp32", micro_batch_size=12),
    )
]


@pytest.mark.parametrize(("name", "gib", "spec"), CASES)
def test_the_largest_micro_batch_is_the_largest_that_fits(name: str, gib: float, spec: JobSpec) -> None:
    model = CostModel(limited(name, gib), planned=True)
    tried = range(1, (spec.micro_batch_size or spec.batch_size) + 1)
    fitting = [
        rows
        for rows in tried
        if model.upper_bytes((model._build(replace(spec, micro_batch_size=rows), rows),)) <= model.capacity_bytes
    ]
    assert largest_micro_batch(model, spec) == max(fitting, default=0)


@pytest.mark.parametrize(("name", "gib", "spec"), CASES)
def test_the_most_jobs_are_the_most_that_fit(
    name: str, gib: float, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_JOBS", 40)
    device = limited(name, gib)
    found = recommend(device, [spec])
    for recompute in (False, True):
        model = CostModel(device, planned=True)
        one = replace(spec, recompute=recompute, micro_batch_size=1)
        most = 0
        if model.micro_batch(one) == 1:
            cost = model.job_cost(one)
            most = max(n for n in range(1, 41) if model.upper_bytes([cost] * n) <= model.capacity_bytes)
        assert found.most[recompute] == most
        assert found.capped[recompute] == (most == 40)
    for row in found.frontier:
        costs = [
            model.job_cost(replace(spec, recompute=row.recompute, micro_batch_size=row.micro_batches[0]))
        ] * row.jobs
        assert row.upper_bytes == int(model.upper_bytes(costs))
        assert row.headroom_bytes >= 0
        assert row.tokens_per_s == pytest.approx(sum(c.real_tokens for c in costs) / row.step_s)


def test_of_different_jobs_as_many_share_as_any_choice_could() -> None:
    specs = [
        job("a", seq_len=200),
        job("b", method="mixlora", seq_len=100),
        job("c", method="dynmole", rank=32, seq_len=60),
        job("d", rank=64, seq_len=400),
        job("e", target_modules="qv", seq_len=30),
    ]
    for gib in (3.0, 4.0, 5.0, 6.5, 9.0, 14.0):
        device = limited("a100-80g", gib)
        found = recommend(device, specs)
        for recompute in (False, True):
            model = CostModel(device, planned=True)
            ones = [replace(spec, recompute=recompute, micro_batch_size=1) for spec in specs]
            costs = [model.job_cost(one) for one in ones if model.micro_batch(one) == 1]
            fits = [
                n
                for n in range(1, len(costs) + 1)
                if any(model.upper_bytes(some) <= model.capacity_bytes for some in combinations(costs, n))
            ]
            assert found.most[recompute] == max(fits, default=0)
        assert found.best is not None or not any(found.most.values())
        if found.best is not None:
            assert found.best.jobs == max(found.most.values())
            assert {*found.best.job_ids, *found.left_out, *found.never} == set("abcde")


def test_search_finds_the_largest_of_a_range() -> None:
    for limit in range(12):
        for edge in range(14):
            assert most_that(lambda n, edge=edge: n <= edge, limit) == min(limit, edge)  # type: ignore[misc]
    assert most_that(lambda n: n in (1, 2, 3, 5), 10, look_ahead=8) == 5


def test_weights_that_do_not_fit() -> None:
    found = recommend(load_device("l4"), [job(base_model="llama-2-13b")])
    assert (found.best, found.recompute, found.never) == (None, "impossible", ("job",))
    assert found.advice == "Nothing runs on l4: the weights of llama-2-13b alone take 24.2 GiB of 23.0 GiB."


def test_one_row_that_fits_with_recompute_only() -> None:
    found = recommend(load_device("rtx-4090"), [job(base_model="llama-7b", seq_len=2048)])
    assert found.recompute == "needed"
    assert found.most[False] == 0 < found.most[True]
    assert found.best is not None and found.best.recompute
    assert "with recompute" in found.advice
    assert found.never == ()


def test_one_row_that_fits_in_no_way() -> None:
    found = recommend(load_device("rtx-4090"), [job(base_model="llama-7b", seq_len=30_000)])
    assert (found.best, found.never) == (None, ("job",))
    assert "one row of a job needs" in found.advice


def test_different_jobs_of_which_some_fit() -> None:
    specs = [job("short", seq_len=100), job("long", seq_len=900), job("huge", seq_len=60_000)]
    found = recommend(limited("l4", 5.0), specs)
    assert found.never == ("huge",)
    assert found.best is not None
    assert set(found.best.job_ids) | set(found.left_out) == {"short", "long"}
    assert "huge can never run here" in found.advice


def test_fusing_pays_until_the_launches_are_paid_for() -> None:
    found = recommend(load_device("h100-80g"), [job(base_model="smollm2-135m", rank=8, batch_size=2, seq_len=64)])
    best = found.best
    assert best is not None and best.jobs > 1
    peak = max(row.tokens_per_s for row in found.frontier if row.recompute is best.recompute)
    assert best.tokens_per_s * (1 + module.PAYS) >= peak
    smaller = [row for row in found.frontier if row.jobs < best.jobs and row.recompute is best.recompute]
    assert all(row.tokens_per_s * (1 + module.PAYS) < peak for row in smaller)
    assert found.advice.startswith(f"Fuse {best.jobs} jobs at a micro-batch of 2 rows each without recompute")


def test_origins_and_other_names_are_said() -> None:
    found = recommend(load_device("a100-80g"), [job()])
    assert (found.memory_origin, found.time_origin) == ("assumed", "assumed")
    assert "nothing was measured on a100-80g" in found.notes[0]
    record = load_device("profiles/data/cpu/llama-tiny.json")
    measured = recommend(record, [job(base_model="llama-tiny", dtype="fp32", seq_len=100)])
    assert (measured.memory_origin, measured.time_origin) == ("fitted", "fitted")
    assert measured.best is not None and measured.best.trusted
    assert not all(row.trusted for row in measured.frontier)
    assert "larger than any that was measured" in measured.notes[0]
    with pytest.raises(UsageError, match="the profile is of llama-tiny"):
        recommend(record, [job()])
    with pytest.raises(UsageError, match="did you mean"):
        recommend(record, [job(base_model="llama-tinyy")])
