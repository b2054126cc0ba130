"""Rows without a file: as long as the simulator's, made when asked for, the same at every call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from loramux_policies.loop.job import Job
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import load_device
from loramux_runtime.data import SyntheticConfig, SyntheticRows, length_stats
from loramux_runtime.fused.packing import IGNORED
from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_simulator.micro_batches import BLOCK, ReadyRun
from loramux_traces.job import JobSpec

LENGTHS: tuple[dict[str, Any], ...] = (
    {"seq_len": 64.0},
    {"seq_len": 40.0, "seq_len_p95": 130.0},
    {"seq_len": 50.0, "length_dist": "sql"},
    {"seq_len": 33.5, "length_dist": "constant"},
)


def rows_of(lengths: dict[str, Any], *, job_id: str = "a", seed: int = 0, micro: int = 4, n: int = 64) -> SyntheticRows:
    config = SyntheticConfig(**lengths, seed=seed)
    return SyntheticRows(config=config, job_id=job_id, rows=n, micro_batch=micro, vocab_size=259)


def simulated(lengths: dict[str, Any], *, job_id: str, seed: int, batch: int, rows: int, n: int) -> list[int]:
    """Lengths of the first n rows that the step simulator trains this job on."""
    spec = JobSpec(
        job_id=job_id,
        submit_s=0.0,
        base_model="llama-tiny",
        method="lora",
        batch_size=batch,
        micro_batch_size=rows,
        total_steps=1e6,
        dtype="fp32",
        **lengths,
    )
    cost = CostModel(load_device("cpu")).job_cost(spec)
    assert cost.rows == rows
    run = ReadyRun(Job(0, spec, (cost,), 1e6, 1e6, 0.0, 0.0), cost, seed)
    seen: list[int] = []
    while len(seen) < n:
        seen += run.lengths
        run.advance(run.rows)
    return seen[:n]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("batch", "micro"), [(8, 8), (8, 2), (4, 1), (6, 3), (5, 2)])
def test_a_real_row_is_as_long_as_the_simulated_one(lengths: dict[str, Any], batch: int, micro: int) -> None:
    n = 2 * BLOCK * micro + 3  # over two ends of blocks
    for job_id, seed in (("a", 0), ("b", 0), ("a", 7)):
        rows = rows_of(lengths, job_id=job_id, seed=seed, micro=batch, n=n).bind(micro)
        expected = simulated(lengths, job_id=job_id, seed=seed, batch=batch, rows=micro, n=n)
        assert [rows.length(i) for i in range(n)] == expected
        assert rows.lengths.tolist() == expected


def test_other_jobs_seeds_and_micro_batches_have_other_lengths() -> None:
    n = 3 * BLOCK  # a smaller micro-batch has other rows from its second block on
    rows = rows_of(LENGTHS[0], n=n)
    others = [
        rows_of(LENGTHS[0], job_id="b", n=n),
        rows_of(LENGTHS[0], seed=1, n=n),
        rows.bind(2),
        rows_of(LENGTHS[1], n=n),
    ]
    assert rows.bind(4) is rows
    assert len({rows.sha256, *(other.sha256 for other in others)}) == 5
    for other in others:
        assert other.lengths.tolist() != rows.lengths.tolist()


def test_a_row_is_the_same_whenever_it_is_asked_for() -> None:
    rows, again = (rows_of(LENGTHS[0], n=5000) for _ in range(2))
    for i in (4999, 0, 2500, 17):
        for mine, other in zip(rows[i], again[i], strict=True):
            assert mine.dtype == np.int64 and (mine == other).all()
    assert len(rows) == 5000 and len(rows._blocks) <= 2  # what is kept does not grow
    assert [len(t) for t, _ in rows] == rows.lengths.tolist() == np.diff(rows.starts).tolist()


def test_every_token_is_learned_but_the_first() -> None:
    rows = rows_of(LENGTHS[0], n=400)
    tokens = np.concatenate([t for t, _ in rows])
    for t, labels in rows:
        assert labels[0] == IGNORED and (labels[1:] == t[1:]).all()
    assert rows.n_tokens == len(tokens) and rows.n_labels == len(tokens) - 400
    # spread over the vocabulary: of 25,000 uniform tokens an id comes up 99 times, give or take 10
    counts = np.bincount(tokens, minlength=259)
    assert len(counts) == 259 and counts.min() > 45 and counts.max() < 155
    assert len({t.tobytes() for t, _ in rows}) == 400


def test_statistics_are_those_of_the_trace() -> None:
    stats = length_stats(rows_of({"seq_len": 64.0, "seq_len_p95": 120.0}, n=20_000))
    assert stats.mean == pytest.approx(64, rel=0.02) and stats.p95 == pytest.approx(120, rel=0.05)


def test_rows_outside_are_refused() -> None:
    rows = rows_of(LENGTHS[0])
    for row in (-1, 64):
        with pytest.raises(IndexError):
            rows[row]
    with pytest.raises(ValueError):
        rows.bind(0)


BAD: tuple[tuple[Any, str], ...] = (
    ({"synthetic": {"seq_len": 64}, "path": "rows.jsonl"}, "not both"),
    ({"synthetic": {"seq_len": 64}, "template": "x"}, "data.template"),
    ({"synthetic": {}}, "data.synthetic.seq_len"),
    ({"synthetic": {"seq_len": 0}}, "data.synthetic.seq_len"),
    ({"synthetic": {"seq_len": float("nan")}}, "data.synthetic.seq_len"),
    ({"synthetic": {"seq_len": True}}, "data.synthetic.seq_len"),
    ({"synthetic": {"seq_len": 1, "seq_len_p95": True}}, "data.synthetic.seq_len_p95"),
    ({"synthetic": {"seq_len": 64, "seq_len_p95": 60}}, "at least seq_len"),
    ({"synthetic": {"seq_len": 64, "length_dist": "alpacca"}}, "did you mean alpaca"),
    ({"synthetic": {"seq_len": 64, "rows": 3}}, "data.synthetic.rows"),
    ({"synthetic": {"seq_len": 64, "seed": -1}}, "data.synthetic.seed"),
    ({"synthetic": 64}, "data.synthetic"),
    ({"limit": 3}, "data.path"),
    ({"path": "rows.jsonl", "limit": 0}, "data.limit"),
    (3, "data"),
)


@pytest.mark.parametrize(("data", "said"), BAD, ids=str)
def test_what_is_wrong_is_said_of_one_kind_of_data_only(data: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainJob.model_validate({"id": "a", "steps": 3, "data": data})
    errors = [(".".join(map(str, e["loc"])), e["msg"]) for e in caught.value.errors()]
    assert all(said in place or said in message for place, message in errors[:1]), errors
    if isinstance(data, dict):
        assert len(errors) == 1, errors


def test_synthetic_data_want_steps() -> None:
    with pytest.raises(ValidationError, match="give steps"):
        TrainJob.model_validate({"id": "a", "epochs": 1, "data": {"synthetic": {"seq_len": 9}}})


@pytest.mark.parametrize("data", [{"synthetic": {"seq_len": 64, "seed": 5}}, {"path": "rows.jsonl"}], ids=str)
def test_a_job_survives_json(data: dict[str, Any]) -> None:
    job = TrainJob.model_validate({"id": "a", "steps": 3, "data": data})
    assert TrainJob.model_validate_json(job.model_dump_json()) == job
    assert TrainJob.model_validate(job.model_dump()) == job and hash(job.data) == hash(job.data.model_copy())
