"""This module says what a run depends on, and what of it differs when the run is to go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from loramux_profiles.devices import DeviceProfile
from loramux_runtime.data import SyntheticData
from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_runtime.jobs.jobs_file import BaseConfig, JobsFile, TrainJob
from loramux_runtime.jobs.preparation import PreparedJob
from loramux_traces.errors import printable
from loramux_traces.filesafe import json_text, plain

Facts = dict[str, Any]
MOST_SHOWN: Final = 20
"""Differences that an error lists; the others are counted."""
_OPTIONS: Final = {
    "policy": "--policy",
    "device": "the device",
    "device_profile": "--device-profile",
    "memory": "--memory",
    "max_resident": "--max-resident",
    "recompute": "--recompute",
    "threads": "--threads",
    "record": "--record",
}
_BASE: Final = {"dtype": "dtype", "seed": "seed", "shape": "shape", "config": "config"}
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_PACKAGES: Final = ("loramux", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that bits may depend on."""
    return {name: version(name) for name in _PACKAGES}


def settings_of(file: JobsFile, profile: DeviceProfile, **options: Any) -> Facts:
    """Return what the run depends on, the rows of its data aside; `options` are those of the command.

    Raises StateError where the base model's folder cannot be read.
    """
    return {
        "options": plain(options),
        "profile": profile.digest,
        "base": _base(file.base),
        "jobs": {job.id: plain(job.model_dump(mode="json")) for job in file.jobs},
        "versions": versions(),
    }


def shortened(settings: Facts) -> Facts:
    """Return the settings with a digest in place of each job, as a run's manifest keeps them."""
    return {**settings, "jobs": {job_id: _digest(job) for job_id, job in settings["jobs"].items()}}


def data_facts(prepared: Iterable[PreparedJob], folder: Path) -> dict[str, Facts]:
    """Return the digests of each job's rows and files, by job."""
    known: dict[Path, str] = {}

    def of_file(path: Path | None) -> str | None:
        if path is None:
            return None
        if path not in known:
            with path.open("rb") as stream:
                known[path] = hashlib.file_digest(stream, "sha256").hexdigest()
        return known[path]

    found = {}
    for job in prepared:
        data, said = job.data, job.config.data
        facts: Facts = {"rows": data.train.sha256, "eval_rows": None if data.eval is None else data.eval.sha256}
        if not isinstance(said, SyntheticData):
            facts["file"] = of_file(folder / said.path)
            facts["eval_file"] = of_file(None if said.eval_path is None else folder / said.eval_path)
        found[job.config.id] = facts
    return found


def differences(now: Facts, then: Facts) -> list[str]:
    """Return what differs, a line each; versions are not among it (`version_changes`)."""
    return [*_differences(now, then)]


def _differences(now: Facts, then: Facts) -> Iterator[str]:
    for name, label in _OPTIONS.items():
        mine, theirs = now["options"].get(name), then["options"].get(name)
        if mine != theirs:
            yield f"{label} is {_shown(mine)} and was {_shown(theirs)}"
    same_options = now["options"] == then["options"]
    if same_options and now["profile"] != then["profile"]:
        yield "the device profile has changed"
    for name, label in _BASE.items():
        mine, theirs = now["base"].get(name), then["base"].get(name)
        if mine != theirs:
            yield f"base.{label} is {_shown(mine)} and was {_shown(theirs)}"
    if now["base"].get("weights") != then["base"].get("weights"):
        yield "the base model has changed (its config.json or its weights)"
    if now["base"].get("tokenizer") != then["base"].get("tokenizer"):
        yield "the tokenizer of the base model has changed"
    yield from _job_differences(now["jobs"], then["jobs"])


def _job_differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    for job_id in sorted(now.keys() - then.keys()):
        yield f"job {job_id} is new"
    for job_id in sorted(then.keys() - now.keys()):
        yield f"job {job_id} is gone"
    for job_id, job in now.items():
        other = then.get(job_id)
        if isinstance(other, str):
            if _digest(job) != other:
                yield f"job {job_id} has changed"
        elif other is not None:
            for path, mine, theirs in _fields(job, other, ""):
                yield f"job {job_id}: {path} is {_shown(mine)} and was {_shown(theirs)}"


def data_differences(now: Mapping[str, Facts], then: Mapping[str, Facts], jobs: Sequence[TrainJob]) -> list[str]:
    """Return the jobs whose rows are others than when the run began, a line each, and why."""
    lines = []
    for job in jobs:
        mine, theirs = now.get(job.id), then.get(job.id)
        if mine is None or theirs is None or (mine["rows"], mine["eval_rows"]) == (theirs["rows"], theirs["eval_rows"]):
            continue
        changed = [name for name in ("file", "eval_file") if mine.get(name) != theirs.get(name)]
        if isinstance(job.data, SyntheticData) or not changed:
            why = (
                "its rows come out otherwise than when the run began, of the same files (another version of a library?)"
            )
        else:
            files = {"file": job.data.path, "eval_file": job.data.eval_path}
            why = f"its data {' and '.join(printable(str(files[name])) for name in changed)} has changed"
        lines.append(f"job {job.id}: {why}")
    return lines


def version_changes(then: Facts) -> list[str]:
    """Return the packages that have another version now, a few words each."""
    now = versions()
    return [f"{name} {known}, now {now[name]}" for name, known in then["versions"].items() if now.get(name) != known]


def listed(lines: Sequence[str]) -> str:
    """Return lines as the indented tail of an error; beyond a cap they are counted."""
    more = [f"... and {len(lines) - MOST_SHOWN:,} more"] if len(lines) > MOST_SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:MOST_SHOWN], *more])


def _base(base: BaseConfig) -> Facts:
    facts: Facts = plain({"dtype": base.dtype, "seed": base.seed, "shape": base.shape, "config": base.config})
    if base.path is not None:
        facts["weights"] = fingerprint(base.path)
        digest = hashlib.sha256()
        for name in _TOKENIZER:
            if (base.path / name).is_file():
                digest.update(name.encode() + (base.path / name).read_bytes())
        facts["tokenizer"] = digest.hexdigest()
    return facts


def _fields(mine: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in sorted(mine.keys() | theirs.keys()):
            yield from _fields(mine.get(name), theirs.get(name), f"{path}.{name}" if path else name)
    elif mine != theirs:
        yield path, mine, theirs


def _shown(value: Any) -> str:
    return "not given" if value is None else printable(str(value), 60)


def _digest(job: Any) -> str:
    return hashlib.sha256(json_text(job).encode()).hexdigest()
