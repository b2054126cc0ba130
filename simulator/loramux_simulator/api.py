"""Provide `simulate()`: it runs one trace under one policy on simulated devices."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from loramux_policies import Policy, create
from loramux_policies.loop.asking import OnPlan
from loramux_policies.loop.blame import no_exit
from loramux_profiles.devices import DeviceProfile, parse_devices
from loramux_simulator.options import SimOptions
from loramux_simulator.run import OnProgress, RunResult, SimulatedRun
from loramux_traces.errors import UsageError
from loramux_traces.job import Trace

DEFAULT_DEVICES: Final = "1xa100-80g"


def simulate(
    trace: Trace | str | Path,
    policy: Policy | type[Policy] | str = "aspen",
    *,
    devices: str | Sequence[DeviceProfile] = DEFAULT_DEVICES,
    events: bool = False,
    timeline: bool = True,
    progress: OnProgress | None = None,
    on_plan: OnPlan | None = None,
    **options: Any,
) -> RunResult:
    """Replay a trace under a policy and return the result.

    `trace`: a Trace or the path of a jobs file. `policy`: an object, a class, or a name such as
    `"aspen:k=4"`. `devices`: as in `"4xa100-80g,2xl4"`, or profiles. `options`: the fields of
    `SimOptions` (fidelity, fusion, ideal, max_resident, seed, ...). Raises InvalidInputError for a
    bad trace or profile, UsageError for a bad option, PolicyError for a policy that misbehaves.
    """
    wall = time.perf_counter()
    chosen = _policy(policy)
    opts = SimOptions(**options)
    loaded = _trace(trace)
    profiles = parse_devices(devices) if isinstance(devices, str) else tuple(devices)
    if not profiles:
        raise UsageError("a run needs at least one device")
    with _same_folder(), no_exit(chosen):
        run = SimulatedRun(
            loaded, chosen, profiles, opts, events=events, timeline=timeline, progress=progress, on_plan=on_plan
        )
        result = run.play()
    result.summary["sim_wall_s"] = time.perf_counter() - wall
    return result


@contextmanager
def _same_folder() -> Iterator[None]:
    """Go back to the working folder of before, wherever the policy has gone: results have paths."""
    try:
        before = os.getcwd()
    except OSError:  # it was deleted; there is nothing to go back to
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(before)


def _policy(policy: Policy | type[Policy] | str) -> Policy:
    if isinstance(policy, str):
        return create(policy)
    return policy() if isinstance(policy, type) else policy


def _trace(trace: Trace | str | Path) -> Trace:
    if isinstance(trace, Trace):
        return trace
    from loramux_profiles.checked import read_checked

    return read_checked(trace)
