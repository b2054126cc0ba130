"""`loramux train` from the command line: what it leaves, what it refuses, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from loramux_traces.runfolder import read_run

from ..tiny_model import CONFIG
from .conftest import Cli

BASE = {"config": CONFIG}


def write(folder: Path, jobs: list[dict[str, Any]] | None = None, **top: Any) -> Path:
    """A jobs file and its data."""
    rows = [{"instruction": f"say {i}", "output": str(i)} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "jobs.yaml"
    defaults = {
        "data": {"path": "rows.jsonl", "template": "{instruction}={output}", "eval_rows": 2},
        "batch_size": 4,
        "steps": 3,
        "adapter": {"rank": 4},
    }
    jobs = jobs if jobs is not None else [{"id": "a"}, {"id": "b", "method": "mola", "priority": 2}]
    file.write_text(yaml.safe_dump({"base": BASE, "defaults": defaults, "jobs": jobs, **top}))
    return file


def test_it_leaves_a_run_folder_and_adapters(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = cli("train", write(tmp_path), "--out", out, "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "mola" in ran.out and "Measured on cpu" in ran.out
    run = read_run(out)
    assert list(run.jobs["final_state"]) == ["COMPLETED"] * 2
    assert run.manifest["kind"] == "real" and run.policy == "aspen"
    assert {event["event"] for event in run.events()} >= {"arrive", "start", "finish"}
    curves = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curves if row["job_id"] == "a"] == [1, 2, 3]
    assert (out / "adapters" / "a" / "adapter_model.safetensors").is_file()
    assert (out / "adapters" / "b" / "adapter_config.json").is_file()
    assert cli("plot", out, "--kind", "gantt").code == 0


def test_a_recorded_run_is_replayed_from_its_folder(cli: Cli, tmp_path: Path) -> None:
    from loramux_policies import create
    from loramux_policies.stepping.replay import replay
    from loramux_profiles.devices import load_device
    from loramux_runtime.jobs.bases import open_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.train.run import TrainRun

    out, jobs = tmp_path / "out", write(tmp_path)
    assert cli("train", jobs, "--out", out, "--device", "cpu", "--record").code == 0
    events = list(read_run(out).events())
    assert sum(event["event"] == "step" for event in events) >= 3
    file = read_jobs_file(jobs)
    specs = TrainRun(file, create("aspen"), load_device("cpu"), base=open_base(file.base)).specs
    assert replay(events, specs, create("aspen"), load_device("cpu")).events == events


def test_json_is_one_object(cli: Cli, tmp_path: Path) -> None:
    ran = cli("train", write(tmp_path), "--out", tmp_path / "out", "--device", "cpu", "--json", "--policy", "sjf")
    assert ran.code == 0, ran.err
    (run,) = json.loads(ran.out)["runs"]
    assert run["policy"] == "sjf" and run["completed"] == 2
    assert set(run["evaluation"]["a"]) == {"before", "after"}


def test_a_run_is_never_overwritten_and_adapters_never_deleted(cli: Cli, tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    assert cli("train", file, "--out", out, "--device", "cpu", "--quiet").code == 0
    assert cli("train", file, "--out", out, "--device", "cpu").code == 6
    forced = cli("train", file, "--out", out, "--device", "cpu", "--force")
    assert forced.code == 6 and "adapters" in forced.err


def test_synthetic_rows_are_those_of_the_step_simulator(cli: Cli, tmp_path: Path) -> None:
    synthetic = {"seq_len": 24, "length_dist": "sql", "seed": 5}
    jobs = [
        {"id": "a", "data": {"synthetic": synthetic}, "epochs": None, "micro_batch_size": 2},
        {"id": "b", "data": {"synthetic": synthetic}, "method": "mola"},
        {"id": "c"},  # of a file, as the defaults say
    ]
    out = tmp_path / "out"
    ran = cli("train", write(tmp_path, jobs), "--out", out, "--device", "cpu", "--record", "--policy", "fifo")
    assert ran.code == 0, ran.err
    assert "a: 12 synthetic rows, 24 tokens in the mean" in ran.err
    trained: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for event in read_run(out).events():
        for job_id, lengths in event.get("entries", ()):
            trained[job_id] += lengths

    trace = tmp_path / "jobs.csv"
    head = "job_id,submit_s,base_model,method,batch_size,micro_batch_size,seq_len,length_dist,total_steps,dtype"
    rows = ["a,0,llama-tiny,lora,4,2,24,sql,3,fp32", "b,0,llama-tiny,mola,4,,24,sql,3,fp32"]
    trace.write_text("\n".join([head, *rows]) + "\n")
    options = ("--devices", "1xcpu", "--fidelity", "step", "--seed", "5", "--policy", "fifo")
    simulated = cli("simulate", "--trace", trace, *options, "--out", tmp_path / "sim", "--quiet")
    assert simulated.code == 0, simulated.err
    found = read_run(tmp_path / "sim" / "fifo-s5").jobs.set_index("job_id")["tokens_done"]
    assert {job_id: sum(trained[job_id]) for job_id in ("a", "b")} == found.to_dict()


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ([], "jobs"),
        ([{"id": "a"}, {"id": "a"}], "used twice"),
        ([{"id": "a", "stepz": 3}], "stepz"),
        ([{"id": "a", "adapter": {"rnak": 3}}], "did you mean rank"),
        ([{"id": "a", "adapter": {"rank": 0}}], "rank"),
        ([{"id": "a", "adapter": {"rank": "many"}}], "rank"),
        ([{"id": "a", "method": "loraa"}], "method"),
        ([{"id": "a", "epochs": 2}], "exactly one of steps and epochs"),
        ([{"id": "a", "micro_batch_size": 9}], "micro_batch_size"),
        ([{"id": "a/b"}], "id"),
        ([{"id": "a", "data": {"path": "none.jsonl"}}], "none.jsonl"),
        ([{"id": "a", "data": {"synthetic": {"seq_len": 9, "rows": 2}}}], "jobs.0.data.synthetic.rows"),
        ([{"id": "a", "data": {"limit": "x"}}], "jobs.0.data.limit"),
        ([{"id": "a", "optimizer": {"lr": float("nan")}}], "lr"),
        (
            [{"id": "a", "adapter": {"target_modules": ["w_proj"]}}],
            "jobs.yaml:21: column adapter.target_modules: 'w_proj'; is no linear of the base model (it has q_proj, k_",
        ),
        (
            [{"id": "a", "adapter": {"target_modules": "all"}}],
            "jobs.yaml:21: column adapter.target_modules: 'all'; must be a list of linears or one of all-linear, att",
        ),
        (
            [{"id": "a", "method": "mixlora", "adapter": {"attention": {"target_modules": []}}}],
            "jobs.yaml:22: column adapter.attention.target_modules: must name at least one linear of the",
        ),
        (
            [{"id": "a", "method": "mola", "adapter": {"num_experts": [2, 2, 2, 2]}}],
            "column adapter: 4 groups of experts for ",
        ),
        ([{"id": "a", "evaluation": {"patience": 2}}], "every_steps"),
        (
            [{"id": "a", "data": {"synthetic": {"seq_len": 9}}, "evaluation": {"every_steps": 2}}],
            "synthetic data have none",
        ),
        ([{"id": "a", "evaluation": {"min_improvement": 0.1}}], "jobs.0.evaluation.min_improvement"),
        ([{"id": "a", "optimizer": {"momentum": 0.9}}], "jobs.0.optimizer.momentum"),
        ([{"id": "a", "optimizer": {"name": "sgd", "eps": 1e-6}}], "jobs.0.optimizer.eps"),
        ([{"id": "a", "optimizer": {"name": "sgd", "betas": [0.9, 0.99]}}], "jobs.0.optimizer.betas"),
    ],
)
def test_bad_jobs_are_named(cli: Cli, tmp_path: Path, jobs: list[dict[str, Any]], said: str) -> None:
    ran = cli("train", write(tmp_path, jobs), "--out", tmp_path / "out", "--device", "cpu")
    assert ran.code == 2
    assert said in ran.err
    assert ran.out == ""
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "text", ["", "- 1", "base: [", "a: &x [*x]", "base: {}\njobs: 3", "\x00", "jobs: !!python/object:os.x {}"]
)
def test_bad_yaml(cli: Cli, tmp_path: Path, text: str) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text(text)
    assert cli("train", file, "--out", tmp_path / "out").code == 2


def test_a_job_that_never_fits_ends_with_4(cli: Cli, tmp_path: Path) -> None:
    ran = cli("train", write(tmp_path), "--out", tmp_path / "out", "--device", "cpu", "--memory", "1MiB")
    assert ran.code == 4
    assert "UNSCHEDULABLE" in ran.err and "bytes" in ran.err


def test_a_missing_card_ends_with_5(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", write(tmp_path), "--out", tmp_path / "out", "--device", "cuda:77").code == 5


@pytest.mark.parametrize(
    "options", [("--memory", "much"), ("--device", "tpu"), ("--policy", "nope"), ("--device-profile", "x9")]
)
def test_bad_options(cli: Cli, tmp_path: Path, options: tuple[str, str]) -> None:
    ran = cli("train", write(tmp_path), "--out", tmp_path / "out", *options)
    assert ran.code == 2 and ran.out == ""


def test_an_adapter_that_cannot_be_written_costs_the_others_nothing(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    from loramux_runtime.train import run as train
    from loramux_traces.errors import StateError

    save = train.save_adapter

    def full(adapter: Any, folder: Path, name: str, **options: Any) -> None:
        if adapter.job_id == "b":
            raise StateError(f"{folder}: the adapter cannot be written (No space left on device)")
        save(adapter, folder, name, **options)

    monkeypatch.setattr(train, "save_adapter", full)
    out = tmp_path / "out"
    ran = cli("train", write(tmp_path), "--out", out, "--device", "cpu")
    assert ran.code == 3 and "No space left" in ran.err
    assert (out / "adapters" / "a").is_dir() and list(read_run(out).jobs["final_state"]) == ["COMPLETED", "UNFINISHED"]
    monkeypatch.setattr(train, "save_adapter", save)
    ran = cli("train", tmp_path / "jobs.yaml", "--out", out, "--device", "cpu", "--resume")
    assert ran.code == 0 and (out / "adapters" / "b").is_dir()
    assert list(read_run(out).jobs["final_state"]) == ["COMPLETED", "COMPLETED"]
    assert not (out / "progress").exists()


def test_a_measured_profile_says_how_far_it_was_off(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path, base={"shape": "llama-tiny", "dtype": "fp32"})
    done = cli("train", file, "--device-profile", "cpu/llama-tiny", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)["runs"][0]["prediction"]
    assert facts["steps"] > 0 and facts["time_factor"] > 0 and "memory_mape" not in facts
    assert "step times were predicted within" in done.err
    other = cli("train", write(tmp_path), "--device-profile", "cpu/llama-tiny", "--out", tmp_path / "no", "--quiet")
    assert other.code == 2 and "the profile is of llama-tiny in fp32" in other.err
