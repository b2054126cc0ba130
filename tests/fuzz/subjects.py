"""What is fuzzed: valid documents of every kind of file, and what reads them."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from .mutate import as_json, as_yaml, mutated_bytes, mutated_value

Read = Callable[[Path], object]
Build = Callable[[random.Random], tuple[str, bytes]]
"""Makes (ending of the file's name, its bytes), mostly broken."""


@dataclass(frozen=True)
class Subject:
    """A Subject is one kind of file: how documents are made, and how they are read."""

    build: Build
    read: Read
    valid: Callable[[], list[tuple[str, bytes]]]
    """Documents that must be taken; the broken ones are made of them."""


LLAMA: Final = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 272, "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default"},
    "head_dim": 16, "attention_bias": False, "max_position_embeddings": 256, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
JOBS: Final[dict[str, Any]] = {
    "base": {"config": LLAMA, "dtype": "fp32", "seed": 1},
    "defaults": {"batch_size": 4, "optimizer": {"name": "adamw", "lr": 1e-4}, "data": {"synthetic": {"seq_len": 32}}},
    "jobs": [
        {"id": "a", "steps": 5, "user": "alice", "priority": 1, "adapter": {"rank": 8, "alpha": 16, "dropout": 0.1}},
        {"id": "b", "method": "mixlora", "steps": 9, "adapter": {"num_experts": 4, "top_k": 2, "attention": {"rank": 4}}},
        {"id": "c", "method": "mola", "steps": 3, "adapter": {"num_experts": [2, 4], "top_k": 1}, "micro_batch_size": 2},
        {"id": "d", "method": "dynmole", "steps": 3, "adapter": {"entropy_threshold": 0.5, "keep_top_k": 1}},
        {
            "id": "e", "method": "loramoe", "epochs": 2, "data": {"path": "rows.jsonl", "max_tokens": 64, "eval_rows": 2},
            "schedule": {"name": "cosine", "warmup_steps": 2}, "evaluation": {"every_steps": 5, "patience": 2},
            "max_grad_norm": None, "submit_s": 3.5, "group": "g", "seed": 7,
        },
    ],
}  # fmt: skip
ROWS: Final[list[dict[str, Any]]] = [
    {
        "job_id": f"job-{i}", "submit_s": 1.5 * i, "base_model": "llama-7b", "method": ("lora", "mixlora", "mola")[i % 3],
        "batch_size": 8, "seq_len": 256.5, "duration_s": 100 + i, "user": "u1", "rank": 16, "priority": i % 2, "num_gpus": 1,
        "length_dist": "alpaca", "recompute": False, "lr": 0.0001, "seed": i, "num_experts": 8, "top_k": 2,
    }
    for i in range(8)
]  # fmt: skip
DATA: Final[dict[str, list[dict[str, Any]]]] = {
    "instruction": [{"instruction": f"add {i}", "input": "x", "output": f"{i}"} for i in range(8)],
    "completion": [{"prompt": f"add {i}", "completion": f" {i}"} for i in range(8)],
    "text": [{"text": f"row {i} \u00e9\u2028"} for i in range(8)],
    "messages": [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(8)
    ],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]} for _ in range(8)],
}  # fmt: skip
ADAPTERS: Final[list[dict[str, Any]]] = [
    {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "use_dora": False, "init_lora_weights": True,
        "fan_in_fan_out": False, "modules_to_save": None, "base_model_name_or_path": "m", "inference_mode": True,
    },
    {
        "peft_type": "MIXLORA", "routing_strategy": "mixlora", "num_experts": 8, "top_k": 2, "r": 8, "lora_alpha": 16,
        "target_modules": {"q_proj": True, "gate_proj": True, "up_proj": True, "down_proj": True},
        "router_aux_loss_coef": 0.01, "expert_lora": {"r": 4, "lora_alpha": 8}, "lora_dropout": 0.0,
    },
    {"peft_type": "MOLA", "routing_strategy": "mola", "num_experts": [2, 4, 6], "top_k": 2, "r": 8, "target_modules": ["q_proj"]},
    {"routing_strategy": "dynmole", "num_experts": 6, "r": 8, "top_p": 0.75, "entropy_threshold": "inf", "keep_top_k": 2},
]  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def _lines(rows: list[Any]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def _rows_of(rng: random.Random, rows: list[dict[str, Any]]) -> list[Any]:
    """Return rows of which some have faults in single values: often one, sometimes many."""
    share = rng.choice((0.05, 0.1, 0.4))
    return [
        mutated_value(rng, row) if rng.random() < share else row for row in rows for _ in range(rng.choice((1, 1, 4)))
    ]


def _either(
    valid: Callable[[], list[tuple[str, bytes]]], faulty: Callable[[random.Random], tuple[str, bytes]]
) -> Build:
    """Return what makes documents with faulty values, faulty bytes, or both."""

    def build(rng: random.Random) -> tuple[str, bytes]:
        kind = rng.choice((0, 0, 1, 1, 2))
        ending, data = faulty(rng) if kind else rng.choice(valid())
        return ending, data if kind == 1 else mutated_bytes(rng, data)

    return build


# ---- jobs.yaml


@cache
def _valid_jobs() -> list[tuple[str, bytes]]:
    single = {**JOBS["defaults"], **JOBS["jobs"][0]}
    return [("yaml", as_yaml(JOBS)), ("json", as_json(JOBS)), ("yaml", as_json(JOBS)), ("yaml", as_yaml(single))]


def _faulty_jobs(rng: random.Random) -> tuple[str, bytes]:
    document = mutated_value(rng, JOBS)
    ending, write = rng.choice((("yaml", as_yaml), ("json", as_json), ("yaml", as_json)))
    return ending, write(document)


def _read_jobs(path: Path) -> object:
    from loramux_runtime.jobs.job_specs import RowFigures, spec_of_figures
    from loramux_runtime.jobs.jobs_file import read_jobs

    jobs = read_jobs(path)
    for job in jobs:  # what is taken can be put in a trace's terms: no step can fail for that later
        spec_of_figures(job, RowFigures(8, 16.0, None), "llama-7b", dtype="fp32", recompute=False)
    return jobs


# ---- traces


@cache
def _valid_traces() -> list[tuple[str, bytes]]:
    return [
        ("csv", b"# made by hand\n" + _table(ROWS)),
        ("json", as_json({"provenance": "p", "jobs": ROWS})),
        ("jsonl", _lines(ROWS)),
        ("yaml", as_yaml(ROWS)),
    ]


def _faulty_trace(rng: random.Random) -> tuple[str, bytes]:
    rows = _rows_of(rng, ROWS)
    kind = rng.randrange(4)
    if kind == 0:
        return "csv", _table([{str(k): str(v)[:2000] for k, v in row.items()} for row in rows]).replace(b"\x00", b"")
    endings: list[tuple[str, Callable[[list[Any]], bytes]]] = [("json", as_json), ("jsonl", _lines), ("yaml", as_yaml)]
    ending, write = endings[kind - 1]
    return ending, write(rows)


def _read_trace(path: Path) -> object:
    from loramux_profiles.checked import read_checked

    return read_checked(path)


# ---- rows of data


@cache
def _valid_data() -> list[tuple[str, bytes]]:
    flat = [DATA[kind] for kind in ("instruction", "completion", "text")]
    return [
        *(("jsonl", _lines(rows)) for rows in DATA.values()),
        *(("json", as_json(rows)) for rows in DATA.values()),
        *(("csv", _table(rows)) for rows in flat),
    ]


def _faulty_data(rng: random.Random) -> tuple[str, bytes]:
    rows = _rows_of(rng, DATA[rng.choice(sorted(DATA))])
    return rng.choice((("jsonl", _lines(rows)), ("json", as_json(rows)), ("json", as_json({"data": rows}))))


@cache
def _tokenizer() -> Any:
    from loramux_runtime.data.tokenizer import byte_tokenizer

    return byte_tokenizer()


def _read_data(path: Path) -> object:
    from loramux_runtime.data.config import DataConfig
    from loramux_runtime.data.load import load_data

    return load_data(DataConfig(path=path, max_tokens=1024), _tokenizer(), vocab_size=272, seed=0)


# ---- adapter_config.json, config.json, device profiles, records, curves


def _json_subject(documents: Callable[[], list[Any]], read: Read, sealed: bool = False) -> Subject:
    @cache
    def valid() -> list[tuple[str, bytes]]:
        return [("json", as_json(document)) for document in documents()]

    def faulty(rng: random.Random) -> tuple[str, bytes]:
        document = mutated_value(rng, rng.choice(documents()))
        if sealed and isinstance(document, dict):
            document = _sealed(document)
        return "json", as_json(document)

    return Subject(_either(valid, faulty), read, valid)


def _sealed(document: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its content, so that the content itself is looked at."""
    from loramux_profiles.records import digest

    try:
        return {**document, "sha256": digest(document)}
    except (ValueError, TypeError, RecursionError, UnicodeEncodeError):
        return document


def _read_adapter(path: Path) -> object:
    from loramux_runtime.jobs.adapter_files import read_adapter_config

    return read_adapter_config(path)


def _read_base(path: Path) -> object:
    from loramux_profiles.hf_config import shape_from_config

    return shape_from_config(path)


@cache
def _shipped(pattern: str) -> list[Any]:
    from loramux_profiles.datafiles import data_dir

    return [json.loads(path.read_text()) for path in sorted(data_dir().glob(pattern))]


@cache
def _records() -> list[Any]:
    from loramux_profiles.devices import data_dir

    record = json.loads((data_dir() / "cpu" / "llama-tiny.json").read_text())
    return [_sealed({**record, "points": record["points"][:6]})]


def _read_device(path: Path) -> object:
    from loramux_profiles.devices import load_device

    device = load_device.__wrapped__(str(path))
    return device, device.digest, device.parallel_curve


def _read_record(path: Path) -> object:
    from loramux_profiles.records import read_record

    return read_record(path)


@cache
def _valid_curves() -> list[tuple[str, bytes]]:
    return [("csv", b"n,phi\n1,1\n2,1.5\n4,2.5\n"), ("csv", b"\xef\xbb\xbfn,phi\r\n1,1\r\n100000,7\r\n")]


def _read_curve(path: Path) -> object:
    from loramux_profiles.curves import load_curve

    return load_curve.__wrapped__(str(path))


# ---- originals of cluster traces

_ORIGINALS: Final = {
    "philly_table.csv": "philly-table",
    "cluster_job_log": "philly-json",
    "helios.csv": "helios",
    "openb_pod_list.csv": "alibaba-gpu2023",
    "trace_kalos.csv": "acme",
    "log.swf": "swf",
}


@cache
def _valid_originals() -> list[tuple[str, bytes]]:
    folder = Path(__file__).parents[1] / "traces" / "data"
    return [(source, (folder / name).read_bytes()) for name, source in _ORIGINALS.items()]


def _read_original(path: Path) -> object:
    from loramux_traces import import_trace

    return import_trace(path.suffix[1:], path)


SUBJECTS: Final = {
    "jobs-yaml": Subject(_either(_valid_jobs, _faulty_jobs), _read_jobs, _valid_jobs),
    "traces": Subject(_either(_valid_traces, _faulty_trace), _read_trace, _valid_traces),
    "data-rows": Subject(_either(_valid_data, _faulty_data), _read_data, _valid_data),
    "adapter-configs": _json_subject(lambda: ADAPTERS, _read_adapter),
    "base-configs": _json_subject(lambda: [LLAMA, {"text_config": LLAMA, "model_type": "x"}], _read_base),
    "device-profiles": _json_subject(lambda: _shipped("*/device.json"), _read_device),
    "records": _json_subject(_records, _read_record, sealed=True),
    "curves": Subject(_either(_valid_curves, lambda rng: rng.choice(_valid_curves())), _read_curve, _valid_curves),
    "originals": Subject(
        _either(_valid_originals, lambda rng: rng.choice(_valid_originals())), _read_original, _valid_originals
    ),
}
