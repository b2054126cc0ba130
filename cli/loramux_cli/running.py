"""This module does what `simulate` and `sweep` do before and after a run.

That is trace, devices, policies and manifest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loramux_traces.errors import UsageError

if TYPE_CHECKING:
    from loramux_profiles.devices import DeviceProfile
    from loramux_simulator import RunResult
    from loramux_traces.job import Trace

DEFAULT_POLICIES = ("fifo", "aspen")
SAMPLE_DEVICES = "4xa100-80g"
ONE_DEVICE = "1xa100-80g"


def load_policies(names: Sequence[str] | None, files: Iterable[Path] | None) -> list[str]:
    """Load the policy files and check every name.

    The default is fifo and aspen, or what the files define.
    """
    from loramux_policies.registry import create, load_file

    with prints_aside():
        defined = [name for file in files or () for name in load_file(file)]
        chosen = list(names or defined or DEFAULT_POLICIES)
        repeated = sorted({name for name in chosen if chosen.count(name) > 1})
        if repeated:
            raise UsageError(f"policy given twice: {', '.join(repeated)}")
        for name in chosen:
            create(name)
    return chosen


@contextmanager
def hold(out: Path | None) -> Iterator[None]:
    """Keep other commands out of --out until this one ends.

    A folder that stays empty is removed again.
    """
    from loramux_traces.locking import owned

    if out is None:
        yield
        return
    with owned(out):
        yield


@contextmanager
def prints_aside() -> Iterator[None]:
    """Send what a policy prints to stderr, because stdout is for results.

    It is put once around a run, for it costs a call.
    """
    with redirect_stdout(sys.stderr):
        yield


def load_trace(path: str | None) -> Trace:
    """Read the trace, or the shipped sample."""
    from loramux_profiles.checked import read_checked
    from loramux_traces.data import sample_path

    return read_checked(sample_path() if path is None else path)


def load_devices(
    text: str | None, profile: Path | None, *, sample: bool, allow_other: bool = False, memory: str | None = None
) -> tuple[DeviceProfile, ...]:
    """Return the devices of the run, with the memory that --memory says.

    With a profile file, --devices may only say how many of it.
    """
    devices = _devices(text, profile, sample=sample, allow_other=allow_other)
    if memory is None:
        return devices
    from loramux_cli.device_choice import memory_bytes
    from loramux_profiles.devices import with_memory

    size = memory_bytes(memory)
    resized = {id(device): with_memory(device, size, "--memory") for device in devices}
    return tuple(resized[id(device)] for device in devices)


def _devices(text: str | None, profile: Path | None, *, sample: bool, allow_other: bool) -> tuple[DeviceProfile, ...]:
    from loramux_profiles.devices import MAX_DEVICES, load_device, parse_devices

    if profile is None:
        return parse_devices(text if text is not None else SAMPLE_DEVICES if sample else ONE_DEVICE)
    device = load_device(str(profile), allow_other=allow_other)
    if text is None:
        return (device,)
    count = text.removesuffix("x") if text.endswith("x") else text
    if not count.isdecimal() or not 1 <= int(count[:9]) <= MAX_DEVICES:
        raise UsageError(
            f"with --device-profile, --devices is a number of them, from 1 to {MAX_DEVICES}, not {text[:80]!r}"
        )
    return (device,) * int(count)


def manifest(
    result: RunResult, policy: str, trace: Trace, devices: Sequence[DeviceProfile], argv: Sequence[str]
) -> dict[str, Any]:
    """Return what a run folder must say of itself so that the run can be made again."""
    import hashlib
    from importlib.metadata import version

    digest = hashlib.sha256("".join(sorted({device.digest for device in devices})).encode()).hexdigest()
    packages = ("loramux", "numpy", "scipy", "pandas", "simpy")
    return {
        "schema_version": 1,
        "kind": "simulated",
        "policy": result.policy,
        "policy_params": policy,
        "seed": result.seed,
        "argv": list(argv),
        "trace": trace_facts(trace),
        "devices": [device["name"] for device in result.devices],
        "profile_sha256": digest,
        "fidelity": result.options["fidelity"],
        "fusion": result.options["fusion"],
        "ideal": result.options["ideal"],
        "options": result.options,
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "origin": result.origin,
        "seed_redraws": list(result.seed_redraws),
        "wall": {"sim_wall_s": result.summary["sim_wall_s"]},
    }


def trace_facts(trace: Trace) -> dict[str, Any]:
    """Return a trace's entry in a manifest or in `simulate --json`."""
    return {"name": trace.name, "sha256": trace.sha256, "provenance": trace.provenance, "jobs": len(trace)}
