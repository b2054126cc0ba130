"""What `loramux train` finds out before it loads the base model: with --dry-run that is all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..tiny_model import CONFIG
from .conftest import Cli
from .test_train import write


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the base model's weights are asked for."""
    from loramux_runtime.jobs import bases

    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base model is loaded")

    made = bases.build_base

    def built(*args: Any, **options: Any) -> Any:
        assert options["device"] == "meta"
        return made(*args, **options)

    monkeypatch.setattr(bases, "load_base", loaded)
    monkeypatch.setattr(bases, "build_base", built)


def model_folder(folder: Path) -> Path:
    """A model of random weights on the disk."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = CONFIG["model_type"]
    config = AutoConfig.for_model(kind, **{name: value for name, value in CONFIG.items() if name != "model_type"})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_shows_the_jobs_and_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    long = {"path": "rows.jsonl", "template": "{instruction}={output}", "eval_rows": 2, "max_tokens": 8}
    jobs = [{"id": "a"}, {"id": "b", "method": "mola", "data": long}]
    file = write(tmp_path, jobs, base={"path": str(model_folder(tmp_path / "model"))})
    before = sorted(tmp_path.rglob("*"))
    ran = cli("train", file, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    assert ran.code == 0, ran.err
    lines = {line.split()[0]: line.split() for line in ran.out.splitlines() if line.startswith(("a ", "b "))}
    assert lines["a"][:6] == ["a", "lora", "10", "2", "3", lines["a"][5]] and lines["a"][-1] == "fits"
    assert lines["b"][6] == "8" and int(lines["b"][7]) > 0  # its longest row, and rows that are cut
    assert "all 2 jobs fit at one time" in ran.out and "predicted" in ran.out
    assert "b: rows.jsonl: 12 instruction rows, 12 cut at max_tokens" in ran.err
    assert sorted(tmp_path.rglob("*")) == before
    (found,) = [json.loads(cli("train", file, "--device", "cpu", "--dry-run", "--json").out)]
    assert [job["job_id"] for job in found["jobs"]] == ["a", "b"] and found["never"] == {}
    assert found["jobs"][0]["steps"] == 3 and found["jobs"][0]["need_bytes"] < found["capacity_bytes"]


@pytest.mark.usefixtures("no_weights")
def test_a_dry_run_says_which_jobs_never_fit_and_how_many_fit_at_a_time(cli: Cli, tmp_path: Path) -> None:
    jobs = [{"id": f"j{i}"} for i in range(9)] + [{"id": "big", "adapter": {"rank": 4096}}]
    ran = cli("train", write(tmp_path, jobs), "--device", "cpu", "--dry-run", "--memory", "6MiB")
    assert ran.code == 4
    assert "TOO LARGE" in ran.out and "big can never run on cpu" in ran.err and "bytes" in ran.err
    seats = cli("train", write(tmp_path, jobs[:-1]), "--device", "cpu", "--dry-run", "--max-resident", "2")
    assert seats.code == 0 and "the first 2 of 9 jobs fit at one time" in seats.out


def test_what_the_steps_are_too_few_for_is_said_before_and_in_training(cli: Cli, tmp_path: Path) -> None:
    late = {"schedule": {"warmup_steps": 50}, "evaluation": {"every_steps": 4}, "optimizer": {"lr": 0.01}}
    split = {"path": "rows.jsonl", "template": "{instruction}={output}", "eval_rows": 2}
    fine = {"schedule": {"warmup_steps": 2}, "evaluation": {"every_steps": 2}, "data": split, "steps": 2}
    jobs = [
        {"id": "a", "data": split, "steps": 2, **late},
        {"id": "b", **fine},
        {"id": "c", "data": split, "steps": None, "epochs": 1, **late},
    ]
    file = write(tmp_path, jobs)
    for options in (("--dry-run",), ()):
        said = cli("train", file, "--out", tmp_path / "out", "--device", "cpu", *options).err
        assert "note: a: schedule.warmup_steps is 50 and the job has 2 steps: its learning rate ends at 0.0004" in said
        assert "note: a: evaluation.every_steps is 4 and the job has 2 steps: it is evaluated at its start and" in said
        assert "note: c: schedule.warmup_steps is 50 and the job has 3 steps" in said
        assert "b: schedule" not in said and "b: evaluation" not in said
        if not options:
            assert said.index("a: schedule.warmup_steps") < said.index("training 3 jobs")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_every_bad_job_is_named_before_the_base_is_loaded(cli: Cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "x"}\n')
    jobs = [
        {"id": "good"},
        {"id": "b1", "data": {"path": "none.jsonl"}},
        {"id": "b2", "data": {"path": "bad.jsonl"}},
        {"id": "b3", "method": "mola", "adapter": {"num_experts": [2, 2, 2, 2]}},
        {"id": "b4", "data": {"path": "bad.jsonl"}},
    ]
    ran = cli("train", write(tmp_path, jobs), "--out", tmp_path / "out", "--device", "cpu", *options)
    assert ran.code == 2 and ran.out == "" and not (tmp_path / "out").exists()
    assert "job b1: " in ran.err and "none.jsonl" in ran.err
    assert "jobs b2, b4: " in ran.err and "bad.jsonl:1" in ran.err
    assert "job b3: " in ran.err and "good" not in ran.err


@pytest.mark.usefixtures("no_weights")
def test_whatever_breaks_while_a_job_is_read_blames_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of the tokenizers library is a BaseException."""
    from loramux_runtime.jobs import shared_rows

    class PanicException(BaseException):
        pass

    made = shared_rows.tokenise_file

    def panics(path: Path, *rest: Any) -> Any:
        if path.name == "panics.jsonl":
            raise PanicException("called `Option::unwrap()`\non a `None` value")
        if path.name == "eats.jsonl":
            raise MemoryError
        return made(path, *rest)

    monkeypatch.setattr(shared_rows, "tokenise_file", panics)
    for name in ("panics.jsonl", "eats.jsonl"):
        (tmp_path / name).write_text("{}\n")
    jobs = [{"id": "a"}, {"id": "p", "data": {"path": "panics.jsonl"}}, {"id": "m", "data": {"path": "eats.jsonl"}}]
    ran = cli("train", write(tmp_path, jobs), "--out", tmp_path / "out", "--device", "cpu")
    assert ran.code == 2
    assert "job p: it cannot be prepared: PanicException: called `Option::unwrap()` on a `None` value" in ran.err
    assert "job m: reading its rows takes more memory than there is" in ran.err


def _truncated(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "file not fully covered"


def _other_shape(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "the tensor has shape (31,), config.json asks for (32,)"


def _missing(folder: Path) -> str:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return "the weights do not have this tensor"


def _no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "no .safetensors weights"


def _no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("spoil", [_truncated, _other_shape, _missing, _no_weights, _no_config])
def test_weights_are_checked_by_their_headers(cli: Cli, tmp_path: Path, spoil: Any) -> None:
    folder = model_folder(tmp_path / "model")
    said = spoil(folder)
    ran = cli("train", write(tmp_path, base={"path": "model"}), "--out", tmp_path / "out", "--device", "cpu")
    assert ran.code == 2 and said in ran.err and str(folder) in ran.err


def test_jobs_of_one_file_share_its_rows(tmp_path: Path) -> None:
    from loramux_runtime.jobs.bases import outline_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.jobs.preparation import Preparation

    file = read_jobs_file(write(tmp_path, [{"id": f"j{i}", "data": {"eval_rows": None}} for i in range(3)]))
    first, *others = Preparation(outline_base(file.base), None).prepare_all(file.jobs, file.folder)
    assert all(one.data.train is first.data.train for one in others)


def test_a_dry_run_says_that_the_folder_is_in_use(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    ran = cli("train", write(tmp_path), "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    assert ran.code == 0 and "the run itself would be refused" in ran.err
