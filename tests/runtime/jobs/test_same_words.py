"""Whatever checks a value says where it is, what it is and what is allowed, in the same words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loramux_cli.recommend import _one_job
from loramux_cli.submission import read_submission
from loramux_profiles.devices import load_device
from loramux_runtime.jobs.jobs_file import read_jobs
from loramux_runtime.jobs.training_state import read_position
from loramux_runtime.live.trace_jobs import train_job
from loramux_runtime.profiler.subjects import read_subjects
from loramux_traces.errors import InvalidInputError, LoramuxError
from loramux_traces.generators import generate
from loramux_traces.job import JobSpec

BASE = "base: {shape: llama-7b}\n"
GOOD = "id: a\nsteps: 5\ndata: {path: rows.jsonl}\n"
SPEC = JobSpec(job_id="a", submit_s=0, base_model="llama-7b", method="lora", batch_size=1, seq_len=64, total_steps=1)


def jobs(folder: Path, job: str) -> str:
    path = folder / "jobs.yaml"
    path.write_text(f"{BASE}jobs:\n- id: a\n  steps: 5\n  data: {{path: rows.jsonl}}\n  {job}\n")
    return str(path)


def submit(folder: Path) -> None:
    path = folder / "job.yaml"
    path.write_text(GOOD)
    read_submission(path, job_id="a b", priority=10**9)


def recommend() -> None:
    device = load_device("a100-80g")
    _one_job(device, "llama-7b", {"method": "mola", "num_experts": 5000}, seq_len=512.0, dtype=None)


POSITION = {
    "version": 1,
    "progress": {
        **dict.fromkeys(("step", "rows_done", "tokens", "skipped", "active_tokens", "losses_seen"), 0),
        **dict.fromkeys(("loss", "aux", "active"), "0x0p+0"),
        **dict.fromkeys(("first_evaluation", "evaluation", "best")),
        "stopped": False, "diverged": "", "bad": -1,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda at: read_jobs(jobs(at, "batch_size: 70000")), ":6: column jobs.0.batch_size: '70000'; must be at most 65,536"),
        (lambda at: read_jobs(jobs(at, "optimizer: {lr: 1e-13}")), ":6: column jobs.0.optimizer.lr: '1e-13'; must be at least 1e-12"),
        (lambda at: read_jobs(jobs(at, "method: qlora")), "jobs.0.method: 'qlora'; must be one of lora, mixlora, mola, loramoe, dynmole"),
        (lambda at: read_jobs(jobs(at, f"user: {'u' * 300}")), "; must have at most 256 characters"),
        (lambda at: read_jobs(jobs(at, "micro_batch_size: 9")), "jobs.0.micro_batch_size: '9'; must not exceed batch_size"),
        (lambda at: read_jobs(jobs(at, "adapter: {rank: 5000}")), ":6: column jobs.0.adapter.rank: '5000'; must be a whole number from 1 to 4096"),
        (
            lambda at: read_jobs(jobs(at, "method: mola\n  adapter: {num_experts: [2, 2000]}")),
            ":7: column jobs.0.adapter.num_experts.1: '2000'; must be a whole number from 1 to 1024",
        ),
        (lambda at: read_jobs(jobs(at, "adapter: {target_modules: 5}")), "jobs.0.adapter.target_modules: '5'; must be text or a list"),
        (lambda at: read_jobs(jobs(at, "adapter: {use_rslora: 7}")), "jobs.0.adapter.use_rslora: '7'; must be true or false"),
        (
            lambda at: read_subjects(jobs(at, "adapter: {rank: 5000}"), seq_len=64),
            ":6: column jobs.0.adapter.rank: '5000'; must be at most 4,096",
        ),
        (lambda at: read_subjects(jobs(at, "batch_size: 0"), seq_len=64), ":6: column jobs.0.batch_size: '0'; must be at least 1"),
        (lambda _: generate("poisson", rho=0), "poisson rho: '0'; must be above 0"),
        (lambda _: generate("poisson", base_model="a b", jobs=1), "base_model: 'a b'; must be a name or path of up to 255"),
        (lambda _: recommend(), "--experts: '5000'; must be at most 1,024"),
        (lambda _: read_position(POSITION), "its progress is not whole: bad: '-1'; must be at least 0"),
        (lambda _: train_job(SPEC, seed=-1), "job a cannot run live: data.synthetic.seed: '-1'; must be at least 0"),
        (submit, "--id: 'a b'; must be up to 64 letters"),
        (submit, "--priority: '1000000000'; must be at most 1,000,000"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_names_the_field_the_value_and_what_is_allowed(
    tmp_path: Path, check: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(LoramuxError) as caught:
        check(tmp_path)
    assert said in str(caught.value)


def test_too_many_jobs_are_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text("jobs: [" + "1, " * 10_001 + "]")
    with pytest.raises(InvalidInputError) as caught:
        read_jobs(path)
    assert [problem.allowed for problem in caught.value.problems] == ["must have at most 10,000 members, not 10,001"]
