"""This module says what a run depends on, and what of it differs when the run is to go on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from loramux_profiles.devices import DeviceProfile
from loramux_runtime.data.made_from import what_changed
from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_runtime.jobs.jobs_file import BaseConfig, JobsFile
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
_PACKAGES: Final = ("loramux", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that bits may depend on."""
    return {name: version(name) for name in _PACKAGES}


def settings_of(file: JobsFile, profile: DeviceProfile, **options: Any) -> Facts:
    """Return what the run depends on, the rows of its data aside.

    `options` are those of the command. Raises StateError where the base model cannot be read.
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


def data_facts(prepared: Iterable[PreparedJob]) -> dict[str, Facts]:
    """Return the digests of each job's rows and what they were made from, by job."""
    return {
        job.config.id: {
            "rows": job.data.train.sha256,
            "eval_rows": None if job.data.eval is None else job.data.eval.sha256,
            "made_from": dict(job.data.made_from),
        }
        for job in prepared
    }


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


def data_differences(now: Mapping[str, Facts], then: Mapping[str, Facts]) -> list[str]:
    """Return the jobs whose rows are others than when the run began, a line each, and why."""
    lines = []
    for job_id, mine in now.items():
        theirs = then.get(job_id, mine)
        if (mine["rows"], mine["eval_rows"]) != (theirs["rows"], theirs["eval_rows"]):
            changed = what_changed(theirs["made_from"], mine["made_from"])
            why = f" ({changed} changed)" if changed else ""
            lines.append(f"job {job_id}: its rows are not those that the run began with{why}")
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
