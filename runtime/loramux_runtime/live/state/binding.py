"""This module holds what a state folder is bound to, and what it says of itself.

It is bound to a base model, weights, policy files and a profile.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loramux_policies.registry import names
from loramux_profiles.devices import DeviceProfile, device_file
from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.store import PROFILE, Store
from loramux_traces.errors import UsageError
from loramux_traces.filesafe import plain, write_text


def bind_base(store: Store, wanted: BaseConfig | None) -> BaseConfig:
    """Return the base model of the state folder: said once, and the same from then on.

    UsageError where none was said yet, another is wanted, or its folder holds other weights now.
    """
    base = _bound(store, wanted)
    _check_weights(store, base)
    return base


def _bound(store: Store, wanted: BaseConfig | None) -> BaseConfig:
    known = store.fact("base")
    if wanted is None:
        if known is None:
            raise UsageError("--base is needed the first time: a model folder, a shape, or a jobs.yaml")
        return BaseConfig.model_validate(known)
    document = plain(wanted.model_dump(mode="json"))
    if known is None or store.fact("starts") is None:
        # no scheduler has come up on it yet
        store.set_facts(base=document)
    elif document != known:
        name = store.fact("base_model") or known.get("shape") or known.get("path") or "a model of its own"
        raise UsageError(f"{store.folder}: its jobs are on another base model ({name}); use another --state")
    return wanted


def _check_weights(store: Store, base: BaseConfig) -> None:
    """Refuse a folder that has come to hold another model since the first jobs began."""
    if base.path is None or not (base.path / "config.json").is_file():
        # the loader says what is wrong with such a folder
        return
    found, known = fingerprint(base.path), store.fact("base_sha256")
    if known is not None and known != found and store.fact("starts") is not None:
        what = f"is not the model that the jobs of {store.folder} began on; use another --state"
        raise UsageError(f"{base.path}: {what}")
    store.set_facts(base_sha256=found)


def last_policy(store: Store, wanted: str | None, files: Sequence[Path] | None, *, again: bool) -> str:
    """Return the policy to go by: the wanted one, else the folder's last, else aspen.

    `again`: the process is started again after a crash, and goes by what the last one acknowledged,
    not by what it was started with. UsageError where that policy came from a file that is not
    given: a file is code, and so never run unasked.
    """
    last = store.fact("policy_text")
    if wanted is not None and not (last and again):
        return wanted
    policy: str = last or "aspen"
    known = store.fact("policy_files", [])
    if known and not files and policy.partition(":")[0] not in names():
        came = f"the last policy, {policy}, came from {', '.join(known)}"
        raise UsageError(f"{came}: give --policy-file again, or another --policy")
    return policy


def keep_profile(store: Store, name: str) -> None:
    """Copy the device profile of that name (or file) into the state folder."""
    write_text(store.folder / PROFILE, device_file(name).read_text(encoding="utf-8"))


def manifest(settings: LiveSettings, store: Store, profile: DeviceProfile) -> dict[str, Any]:
    """Return what the run folder says of itself."""
    packages = ("loramux", "torch", "transformers", "numpy")
    trace = store.fact("trace") or _submitted(store)
    policy = store.fact("policy_text") or settings.policy
    events = list(store.events())
    changes = sum(event["event"] in ("policy", "policy-error") for event in events)
    return {
        "policy": policy,
        "policy_params": policy,
        "policy_changes": changes,
        "interruptions": sum(event["event"] == "scheduler" for event in events) - 1,
        "seed": trace.get("seed", 0),
        "time_scale": trace.get("time_scale", 1.0),
        "step_scale": trace.get("step_scale", 1.0),
        "argv": list(sys.argv),
        "trace": trace,
        "devices": [store.fact("device", "")],
        "base_model": store.fact("base_model", ""),
        "profile_sha256": profile.digest,
        "memory_measured": store.fact("memory_bytes") is not None,
        "memory_bytes": profile.parameters["memory_bytes"].value,
        "max_resident": None if settings.max_resident == float("inf") else int(settings.max_resident),
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
    }


def _submitted(store: Store) -> dict[str, Any]:
    """Describe the jobs that came by `submit`.

    The digest of what they are tells them from other queues' jobs.
    """
    jobs = store.jobs()
    digest = hashlib.sha256("".join(job["config"] for job in jobs).encode()).hexdigest()
    return {"name": "submitted", "sha256": digest, "provenance": "", "jobs": len(jobs)}
