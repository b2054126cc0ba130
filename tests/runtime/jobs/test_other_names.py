"""What is said of a field that is not known: where ours stands, or that there is none."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loramux_cli.train import TrainOptions
from loramux_runtime.data import DataConfig
from loramux_runtime.fused.adapters.configs import CONFIGS
from loramux_runtime.jobs import other_names
from loramux_runtime.jobs.jobs_file import BaseConfig, JobsFile, TrainJob, read_jobs_file
from loramux_traces.errors import InvalidInputError

PARTS: dict[str, Any] = {"": TrainJob, "base": BaseConfig, "data": DataConfig} | {
    part: TrainJob.model_fields[part].annotation for part in ("optimizer", "schedule", "evaluation")
}


def said(folder: Path, job: str = "", top: str = "", base: str = "shape: llama-7b") -> str:
    path = folder / "jobs.yaml"
    data = "" if "data:" in job else "data: {path: r.jsonl}, "
    path.write_text(f"base: {{{base}}}\n{top}\njobs:\n- {{id: a, steps: 2, {data}{job}}}\n")
    with pytest.raises(InvalidInputError) as caught:
        read_jobs_file(path)
    (line,) = str(caught.value).splitlines()
    return line.partition(": column ")[2].removeprefix("jobs.0.")


NO = "is no field; this is not supported: "


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        *(
            (f"{name}: 1", f"{name}: is no field; in a job it is {place}")
            for name, place in {
                "learning_rate": "optimizer.lr", "lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay",
                "num_train_epochs": "epochs", "cutoff_len": "data.max_tokens", "sequence_len": "data.max_tokens",
                "rank": "adapter.rank", "r": "adapter.rank", "lora_alpha": "adapter.alpha", "path": "data.path",
                "warmup_ratio": "schedule.warmup_steps (a number of steps, no share of them)",
                "gradient_accumulation_steps": "batch_size (rows per optimizer step, gradient accumulation included)",
            }.items()
        ),
        ("packing: true", f"packing: {NO}rows are always packed without padding, and none sees another"),
        ("load_in_4bit: true", f"load_in_4bit: {NO}the base is in fp32 or bf16"),
        ("layers_to_transform: 1", f"layers_to_transform: {NO}an adapter is on every layer"),
        ("bf16: true", "bf16: is no field; in the file, beside jobs, it is base.dtype"),
        ("output_dir: x", "output_dir: is no field; for all jobs it is the option --out of loramux train"),
        ("data: {path: r, split: train}", f"data.split: {NO}data.path is one file; data.eval_path, eval_rows"),
        ("data: {path: r, val_set_size: 9}", "data.val_set_size: is no field; in a job it is data.eval_fraction (a share"),
        ("data: {path: r, max_token: 9}", "data.max_token: is no field; did you mean max_tokens?"),
        ("data: {synthetic: {seq_len: 9}, template: x}", "data.template: is no field (known: synthetic)"),
        ("adapter: {r: 4}", "adapter: has no field 'r'; in a job it is adapter.rank"),
        ("adapter: {modules_to_save: x}", "adapter: has no field 'modules_to_save'; this is not supported: no module"),
        ("adapter: {top_k: 4}", "adapter: has no field 'top_k' (known: rank, alpha, dropout, target_modules,"),
        ("method: mixlora, adapter: {attention: {r: 4}}", "adapter.attention: has no field 'r'; in a job it is adapter.attention.rank"),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate: is no field; in a job it is optimizer.lr"),
        ("schedule: {warmup_ratio: .1}", "schedule.warmup_ratio: is no field; in a job it is schedule.warmup_steps"),
        ("evaluation: {eval_steps: 4}", "evaluation.eval_steps: is no field; in a job it is evaluation.every_steps"),
        ("evaluation: {rate: 4}", "evaluation.rate: is no field (known: every_steps, patience, min_improvement)"),
        ("colour: red", "colour: is no field (known: id, method, adapter, data, batch_size, "),
    ],
)  # fmt: skip
def test_fields_of_other_trainers_and_of_none(tmp_path: Path, job: str, expected: str) -> None:
    assert said(tmp_path, job).startswith(expected)


def test_fields_beside_the_jobs_and_of_the_base(tmp_path: Path) -> None:
    assert (
        said(tmp_path, top="batch_size: 3")
        == "batch_size: is no field; it stands in a job, or in defaults for all jobs"
    )
    assert said(tmp_path, top="lora_r: 3") == "lora_r: is no field; in a job it is adapter.rank"
    assert said(tmp_path, top="default: {}") == "default: is no field; did you mean defaults?"
    assert said(tmp_path, top="zzz: 1") == "zzz: is no field (known: jobs, base, defaults)"
    assert said(tmp_path, top="base_model: m") == "base_model: is no field; in the file, beside jobs, it is base.path"
    assert said(tmp_path, base="shape: llama-7b, load_in_8bit: true").startswith("base.load_in_8bit: " + NO)


def test_every_place_of_the_table_is_there_and_every_name_stands_once() -> None:
    for place in other_names._NAMES:
        part, _, name = place.partition(" (")[0].rpartition(".")
        if part == "adapter":
            assert any(name in {field.name for field in fields(config)} for config in CONFIGS.values()), place
        else:
            assert name in PARTS[part].model_fields, place
    for option in other_names._OPTIONS:
        assert option.removeprefix("--").replace("-", "_") in {field.name for field in fields(TrainOptions)}
    tables = (other_names._NAMES, other_names._MISSING, other_names._OPTIONS)
    names = [name for table in tables for text in table.values() for name in text.split()]
    assert sorted(names) == sorted(set(names))
    assert not set(names) & {*TrainJob.model_fields, *JobsFile.model_fields}


def test_our_own_names_are_found_from_anywhere() -> None:
    for part, model in PARTS.items():
        if part in ("optimizer", "schedule", "evaluation", "data"):
            for name in model.model_fields:
                if name not in ("name", *TrainJob.model_fields):
                    assert other_names.elsewhere(name) == f"in a job it is {part}.{name}"
                    assert other_names.elsewhere(name, [part]) == ""
