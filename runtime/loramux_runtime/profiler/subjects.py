"""The subjects are the jobs that `estimate` and `recommend` are asked about.

They come from a jobs file or from a trace, on their base or another. Importing this needs no torch.
A jobs file is read by the training runtime, with the lengths of its data; where lengths are given
instead, an outline of it is enough, which needs no torch either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from loramux_profiles.checked import read_checked
from loramux_profiles.datafiles import looks_like_path, problem, read_json
from loramux_profiles.fitted import adapter_point
from loramux_profiles.hf_config import shape_from_dict
from loramux_profiles.shape_catalog import load_shape, register_shape, shape_names
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint
from loramux_traces.documents import read_document
from loramux_traces.errors import InvalidInputError, UsageError
from loramux_traces.file_model import faults
from loramux_traces.files import MAX_SMALL
from loramux_traces.job import JobSpec
from loramux_traces.job_types import Dtype
from loramux_traces.reader import folder_of
from loramux_traces.yaml_core import Document

if TYPE_CHECKING:
    from loramux_runtime.jobs.jobs_file import JobsFile

_PLACES: Final = {
    "job_id": "id",
    **{name: f"adapter.{name}" for name in ("rank", "dropout", "target_modules", "num_experts", "top_k")},
}
"""Columns of a trace that a job of a jobs file has under other names."""
RUNTIME_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "lora": {"rank": 16, "target_modules": "all-linear"},
    "mixlora": {"rank": 16, "num_experts": 8, "top_k": 2},
    "mola": {"rank": 8, "target_modules": "all-linear", "num_experts": 8, "top_k": 2},
    "loramoe": {"rank": 8, "target_modules": "mlp", "num_experts": 8},
    "dynmole": {"rank": 24, "target_modules": "mlp", "num_experts": 6, "keep_top_k": 2},
}
"""Defaults of the methods' configurations (`adapters/*/config.py`; a test holds them equal)."""
NAMED: Final = ("all-linear", "attention", "mlp", "qv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Describes a base model by its shape."""

    label: str
    """Name by which jobs refer to the base model."""
    shape: ModelShape
    config: dict[str, Any] | None = None
    """Configuration of transformers, where one was given; None: llama-like, of that shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """Holds jobs, and what of them a trace cannot say."""

    specs: tuple[JobSpec, ...]
    adapters: dict[str, AdapterPoint] = field(default_factory=dict)
    """Adapter by job, where it differs from what the spec says (DoRA, experts by layer)."""
    base: Base | None = None
    """Base of all of them; None where a trace has several."""
    folder: str = ""
    """Folder where relative paths of models start."""
    lengths: str = ""
    """Where row lengths come from, in words."""
    notes: tuple[str, ...] = ()

    def adapter(self, spec: JobSpec) -> AdapterPoint:
        """Return the adapter of a job."""
        return self.adapters.get(spec.job_id) or adapter_point(spec)

    def unsaid(self, spec: JobSpec) -> list[str]:
        """Return what makes a job's adapter heavier and cannot be said by its spec."""
        return ["DoRA"] if self.adapter(spec).dora else []


def find_base(name_or_path: str, folder: str = "") -> Base:
    """Return a shipped shape, or a local configuration, as a base.

    Raises UsageError or InvalidInputError where the name is neither.
    """
    shape = load_shape(name_or_path, folder)
    if shape.name in shape_names() or not looks_like_path(name_or_path):
        return Base(label=shape.name, shape=shape)
    file = Path(folder) / name_or_path
    return _own_base(read_json(file / "config.json" if file.is_dir() else file), name_or_path, file)


def _own_base(config: dict[str, Any], name: str, file: Path | str) -> Base:
    short = name.removesuffix("/config.json").rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")
    label = re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-.")[:100] or "base"
    shape = replace(shape_from_dict(config, f"{label}.own", file), source="")
    try:
        register_shape(shape)
    except ValueError as error:  # two folders of one name in one process
        raise UsageError(str(error)) from error
    return Base(label=shape.name, shape=shape, config=config)


def read_subjects(
    path: str,
    *,
    model: str | None = None,
    dtype: Dtype | None = None,
    recompute: bool = False,
    seq_len: float | None = None,
    seq_len_p95: float | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Subjects:
    """Read the jobs of a jobs file or of a trace.

    The lengths of a jobs file are those of its data, or `seq_len`. `model`, `dtype` and `recompute`
    override what the file says. Raises UsageError and InvalidInputError.
    """
    base = None if model is None else find_base(model)
    changes: dict[str, Any] = {"recompute": True} if recompute else {}
    changes |= {} if dtype is None else {"dtype": dtype}
    if seq_len is not None:
        changes |= {"seq_len": seq_len, "seq_len_p95": seq_len_p95, "length_dist": None}
    document = _jobs_document(path)
    if document is None:
        return _of_trace(path, base, changes)
    if seq_len is not None:
        return _outlined(path, document, base, changes)
    try:
        from loramux_runtime.jobs.jobs_file import read_jobs_file
    except ImportError as error:
        raise UsageError(
            f"{path}: reading the jobs' data needs {error.name}: pip install 'loramux[runtime]', or give --seq-len"
        ) from error
    return _of_jobs_file(read_jobs_file(path), base, dtype, recompute, tell)


def _jobs_document(path: str) -> Document | None:
    """Return what a jobs file holds; None where the file is no jobs file, and so a trace."""
    if not path.endswith((".yaml", ".yml", ".json")):
        return None
    if not Path(path).exists():
        raise InvalidInputError([problem(path, "", "", "no such file")])
    try:
        document = read_document(path, MAX_SMALL, "a jobs file")
    except InvalidInputError:
        return None  # the reader of traces says what is wrong with it
    return document if isinstance(document.value, dict) and "base" in document.value else None


def _of_trace(path: str, base: Base | None, changes: dict[str, Any]) -> Subjects:
    trace = read_checked(path)
    if base is not None:
        changes = {**changes, "base_model": base.label}
    specs = tuple(replace(spec, **changes) for spec in trace.jobs)
    if not specs:
        raise UsageError(f"{path}: no jobs")
    folder = folder_of(path)
    names = {spec.base_model for spec in specs}
    if base is None and len(names) == 1:
        (name,) = names
        base = replace(find_base(name, folder), label=name)
    lengths = "given by --seq-len" if "seq_len" in changes else "the trace's seq_len"
    return Subjects(specs=specs, base=base, folder=folder, lengths=lengths)


# -- jobs files


def _base_of_file(base: Mapping[str, Any], folder: Path) -> Base:
    given = {key: base[key] for key in ("path", "shape", "config") if base.get(key) is not None}
    if len(given) != 1:
        raise UsageError("base: give exactly one of path, shape and config")
    ((key, value),) = given.items()
    if key == "config":
        if not isinstance(value, dict):
            raise UsageError("base.config: must be a mapping")
        return _own_base(dict(value), f"{folder.name or 'jobs'}-{value.get('model_type', 'base')}", "base.config")
    if key == "shape":
        return find_base(str(value))
    where = folder / str(value)
    return _own_base(read_json(where / "config.json"), where.name, where / "config.json")


def _of_jobs_file(
    file: JobsFile, base: Base | None, dtype: Dtype | None, recompute: bool, tell: Callable[[str], None]
) -> Subjects:
    from loramux_runtime.data import load_tokenizer
    from loramux_runtime.jobs.job_data import job_data
    from loramux_runtime.jobs.job_specs import spec_of_data

    known = base or _base_of_file(file.base.model_dump(), file.folder if file.base.path is None else Path())
    tokenizer = load_tokenizer(file.base.path)
    specs, adapters, notes = [], {}, []
    for job in file.jobs:
        tell(f"reading the data of {job.id}")
        # under another base the lengths count, not the ids
        vocab = max(known.shape.vocab, tokenizer.vocab_size)
        data = job_data(job, tokenizer, vocab_size=vocab, base=file.folder)
        spec = spec_of_data(job, data, known.label, dtype=dtype or file.base.dtype, recompute=recompute)
        specs.append(spec)
        config = job.adapter_config
        names = ("num_experts", "use_dora", "target_modules", "attention")
        values = {name: getattr(config, name) for name in names if hasattr(config, name)}
        adapters[job.id], said = _adapter(spec, values)
        notes += [f"{job.id}: {text}" for text in said]
    if base is not None and tokenizer.vocab_size > base.shape.vocab:
        notes.append(f"lengths are those of {tokenizer.name}'s tokens, not of {base.label}'s")
    return Subjects(specs=tuple(specs), adapters=adapters, base=known, lengths="the jobs' own data", notes=tuple(notes))


def _adapter(spec: JobSpec, config: Mapping[str, Any]) -> tuple[AdapterPoint, list[str]]:
    """Return what the plan and the fake step go by.

    The second part of the result says, in words, what of the configuration they leave out.
    """
    point = adapter_point(spec)
    said = []
    experts = config.get("num_experts")
    if isinstance(experts, list | tuple):
        point = replace(point, experts=tuple(int(n) for n in experts))
    if config.get("use_dora") is True:
        point = replace(point, dora=True)
    targets = config.get("target_modules", "all-linear")
    if targets not in NAMED:
        said.append("its list of linears is reckoned as all of them")
    if spec.method == "mixlora" and "attention" in config:
        attention = config["attention"]
        if attention is None:
            point = replace(point, targets="mlp")
        else:
            rank = attention.get("rank", 16) if isinstance(attention, dict) else attention.rank
            if rank != spec.rank:
                said.append(f"its attention adapters are reckoned with the experts' rank {spec.rank}, not {rank}")
    return point, said


def _outlined(path: str, document: Document, base: Base | None, changes: dict[str, Any]) -> Subjects:
    """Read the jobs of a jobs file without the runtime.

    Only what memory depends on is read, and no more of the file is checked.
    """

    def fail(place: Sequence[str | int], value: object, allowed: str) -> InvalidInputError:
        shared = ("defaults", *place[2:])
        line = document.line_of(shared if not document.has(place) and document.has(shared) else place)
        return InvalidInputError([problem(path, ".".join(map(str, place)), value, allowed, line)])

    content = document.value
    section, jobs, under = content["base"], content.get("jobs"), content.get("defaults") or {}
    if not isinstance(section, dict) or not isinstance(jobs, list) or not jobs or not isinstance(under, dict):
        raise fail((), "", "must hold a mapping with base and jobs")
    known = base or _base_of_file(section, Path(path).parent)
    specs: list[JobSpec] = []
    adapters: dict[str, AdapterPoint] = {}
    notes: list[str] = []
    for i, job in enumerate(jobs):
        if not isinstance(job, dict):
            raise fail(("jobs", i), job, "must be a mapping")
        merged = {**under, **job}
        method = str(merged.get("method", "lora"))
        config: dict[str, Any] = {**RUNTIME_DEFAULTS.get(method, {})}
        for part in (under.get("adapter"), job.get("adapter")):
            config |= part if isinstance(part, dict) else {}
        targets = config.get("target_modules", "all-linear")
        if method == "mixlora" and "attention" in config and config["attention"] is None:
            targets = "mlp"
        experts = config.get("num_experts")
        experts = max(experts) if isinstance(experts, list) and experts else experts
        top_k = config.get("top_k", config.get("keep_top_k"))
        fields: dict[str, Any] = {
            "job_id": merged.get("id"),
            "submit_s": merged.get("submit_s", 0.0),
            "base_model": known.label,
            "method": method,
            "batch_size": merged.get("batch_size", 8),
            "micro_batch_size": merged.get("micro_batch_size"),
            "rank": config.get("rank"),
            "dropout": config.get("dropout", 0.05),
            "target_modules": targets if targets in NAMED else "all-linear",
            "num_experts": experts,
            "top_k": max(1, min(top_k, experts)) if isinstance(top_k, int) and isinstance(experts, int) else 1,
            "dtype": section.get("dtype", "fp32"),
            "total_steps": 1,
        }
        try:
            spec = JobSpec(**{**fields, **changes})
        except ValidationError as error:
            first = faults(error, {**fields, **changes})[0]
            name = _PLACES.get(first.field, first.field)
            place: tuple[str | int, ...] = ("base", "dtype") if name == "dtype" else ("jobs", i, *name.split("."))
            raise fail(place, first.value, first.allowed) from error
        if spec.job_id in adapters:
            raise fail(("jobs", i, "id"), spec.job_id, "is used twice")
        specs.append(spec)
        adapters[spec.job_id], said = _adapter(spec, {"attention": {}, **config})
        notes += [f"{spec.job_id}: {text}" for text in said]
    return Subjects(specs=tuple(specs), adapters=adapters, base=known, lengths="given by --seq-len", notes=tuple(notes))
