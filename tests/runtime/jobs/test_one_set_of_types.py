"""A value that a jobs.yaml may hold is one that a trace may hold, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loramux_runtime.jobs.job_specs import RowFigures, spec_of_figures
from loramux_runtime.jobs.jobs_file import TrainJob, read_jobs
from loramux_traces.errors import InvalidInputError
from loramux_traces.job import JobSpec
from loramux_traces.job_types import is_absent
from loramux_traces.limits import MAX_EXPERTS, MAX_LR, MAX_RANK, MAX_STEPS, MIN_LR
from loramux_traces.reader import read_trace

#: Column of a trace, and where the same stands in a job of a jobs.yaml.
SHARED = {
    "job_id": ("id",),
    "user": ("user",),
    "group": ("group",),
    "method": ("method",),
    "batch_size": ("batch_size",),
    "micro_batch_size": ("micro_batch_size",),
    "submit_s": ("submit_s",),
    "priority": ("priority",),
    "seed": ("seed",),
    "total_steps": ("steps",),
    "lr": ("optimizer", "lr"),
    "rank": ("adapter", "rank"),
    "alpha": ("adapter", "alpha"),
    "dropout": ("adapter", "dropout"),
    "num_experts": ("adapter", "num_experts"),
    "top_k": ("adapter", "top_k"),
}
#: Required in one of the files, with a default in the other: what says nothing is not compared.
REQUIRED = ("job_id", "submit_s", "method", "batch_size", "total_steps")
ROW: dict[str, Any] = {
    "job_id": "a", "submit_s": 0, "base_model": "llama-7b", "method": "mixlora", "batch_size": 8, "seq_len": 16,
    "total_steps": 5, "num_experts": 8, "top_k": 1,
}  # fmt: skip
JOB: dict[str, Any] = {
    "id": "a", "method": "mixlora", "batch_size": 8, "steps": 5, "data": {"synthetic": {"seq_len": 16}},
    "adapter": {"num_experts": 8, "top_k": 1},
}  # fmt: skip

words = st.sampled_from(
    ["", " ", "alice", "alice ", " a b ", "no", "on", "8", " 8 ", "1e-4", "1_0", "010", "0x10", "1:30", "true", "nan",
     "inf", "a\tb", "a\u202eb", "\u00a0x", "x" * 65, "x" * 256, "x" * 257, "lora", "lora ", "mola", "Lora", "0\x1f", "8\x1c", "8\u00a0", "-1", "8.0", "8.5"]
)  # fmt: skip
values = st.one_of(
    st.none(),
    st.booleans(),
    words,
    st.text(max_size=8),
    st.integers(-3, 5000),
    st.sampled_from([10**k + d for k in (3, 4, 9, 10, 12, 18, 30, 400) for d in (-1, 0, 1)]),
    st.sampled_from([2**53, 2**63 - 1, 2**63, MAX_RANK, MAX_RANK + 1, MAX_EXPERTS + 1, MAX_STEPS + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([MIN_LR, MIN_LR / 10, MAX_LR, MAX_LR * 1.01, 1e-13, 0.999999, 1.0, 2.5, 1e12, 1.1e12, 1e-300]),
    st.lists(st.integers(1, 4), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("types")


def as_row(folder: Path, column: str, value: Any) -> JobSpec | None:
    path = folder / "rows.jsonl"
    row = {**ROW, column: value}
    if column == "method":
        del row["num_experts"], row["top_k"]
    path.write_text(json.dumps(row))
    try:
        return read_trace(path).jobs[0]
    except InvalidInputError:
        return None


def as_job(folder: Path, where: tuple[str, ...], value: Any) -> TrainJob | None:
    job: dict[str, Any] = json.loads(json.dumps(JOB))
    if where == ("method",):
        del job["adapter"]  # whose fields are those of another method
    part = job
    for name in where[:-1]:
        part = part.setdefault(name, {})
    part[where[-1]] = value
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    try:
        return read_jobs(path)[0]
    except InvalidInputError:
        return None


def spec_of(job: TrainJob) -> JobSpec:
    """Put the job in a trace's terms; of its rows no more than their figures."""
    return spec_of_figures(job, RowFigures(8, 16.0, None), "llama-7b", dtype="bf16", recompute=False)


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(SHARED)), values)
@example("user", "alice ")
@example("lr", 1e-13)
@example("lr", "1e-4")
@example("rank", 10**400)
@example("rank", True)
@example("num_experts", 10**9)
@example("batch_size", "1_0")
@example("total_steps", 10**30)
@example("job_id", 7)
@example("job_id", False)
def test_both_files_take_the_same_values(folder: Path, column: str, value: Any) -> None:
    row, job = as_row(folder, column, value), as_job(folder, SHARED[column], value)
    if column in REQUIRED and is_absent(value):
        return  # one of the two has a default for it
    if column == "total_steps" and row is not None and row.total_steps != int(row.total_steps or 0):
        assert job is None  # a trace may have a part of a step, a job that trains may not
        return
    assert (row is None) == (job is None), (row, job)
    if row is not None and job is not None and not is_absent(value):
        assert getattr(spec_of(job), column) == getattr(row, column)


@pytest.mark.parametrize(
    ("job", "line", "column"),
    [
        ("{id: a, steps: 5, batch_size: 1000000000000000000}", 4, "jobs.0.batch_size"),
        (f"{{id: a, steps: 1{'0' * 30}}}", 4, "jobs.0.steps"),
        (f"{{id: a, steps: 5, adapter: {{rank: 1{'0' * 400}}}}}", 4, "jobs.0.adapter.rank"),
        (f"{{id: a, steps: 5, adapter: {{rank: 1{'0' * 5000}}}}}", 4, "jobs.0.adapter.rank"),
        ("{id: a, steps: 5, method: mola, adapter: {num_experts: 1000000000}}", 4, "jobs.0.adapter.num_experts"),
        ("{id: a, steps: 5, method: mola, adapter: {num_experts: [2, 2000]}}", 4, "jobs.0.adapter.num_experts.1"),
        ("{id: a, steps: 5, adapter: {alpha: .inf}}", 4, "jobs.0.adapter.alpha"),
        ("{id: a, steps: 5, adapter: {dropout: true}}", 4, "jobs.0.adapter.dropout"),
        ("{id: a, steps: 5, adapter: {rnak: 5}}", 4, "jobs.0.adapter"),
        ("\n    id: a\n    steps: 5\n    optimizer:\n      lr: 1e9", 8, "jobs.0.optimizer.lr"),
        ("\n    id: a\n    epochs: 1e-300", 6, "jobs.0.epochs"),
        ("{id: a, steps: 5, schedule: {warmup_steps: 1e30}}", 4, "jobs.0.schedule.warmup_steps"),
        ("{id: a, steps: 5, user: [a]}", 4, "jobs.0.user"),
        ("{id: a, steps: 5, data: rows.jsonl}", 4, "jobs.0.data"),
        ("{id: a, steps: 5, data: {path: [b]}}", 4, "jobs.0.data.path"),
        ("{id: a, steps: 5, optimizer: []}", 4, "jobs.0.optimizer"),
        ("{id: a, steps: 5, user: x\u202ey}", 4, "jobs.0.user"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_line_and_field(
    tmp_path: Path, job: str, line: int, column: str
) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(f"defaults:\n  data: {{path: rows.jsonl}}\njobs:\n  - {job}\n", encoding="utf-8")
    with pytest.raises(InvalidInputError) as caught:
        read_jobs(path)
    problem = caught.value.problems[0]
    assert (problem.line, problem.column) == (line, column), problem
    assert problem.allowed and len(str(problem)) < 400
    assert not any(word in str(problem) for word in ("function-", "<class", "instance of", "dictionary"))


def test_a_bad_value_of_the_defaults_has_the_line_of_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("defaults:\n  data: {path: rows.jsonl}\n  seed: -1\njobs:\n  - {id: a, steps: 5}\n")
    with pytest.raises(InvalidInputError) as caught:
        read_jobs(path)
    assert [(p.line, p.column) for p in caught.value.problems] == [(3, "jobs.0.seed")]


def test_yaml_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(
        "jobs:\n- {id: no, user: on, group: 007, steps: 5, priority: 010, optimizer: {lr: 1e-4},"
        " data: {path: rows.jsonl}}\n"
    )
    job = read_jobs(path)[0]
    assert (job.id, job.user, job.group, job.priority, job.optimizer.lr) == ("no", "on", "007", 10, 1e-4)


def test_a_name_that_is_a_number_stays_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("jobs:\n- {id: 0x1F, user: +31, group: 31, steps: 0x10, data: {path: rows.jsonl}}\n")
    job = read_jobs(path)[0]
    assert (job.id, job.user, job.group, job.steps) == ("0x1F", "+31", "31", 16)
