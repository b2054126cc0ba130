"""Simulate a real run of a trace again.

The jobs, row lengths, policy, seats and device profile are the same. The folder of such a run
holds, beside what every run folder has (`loramux_traces.runfolder`): `trace.csv`, the jobs as they
were submitted (times and steps as scaled), and `profile.json`, the device profile that the
scheduler went by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from loramux_policies.registry import create
from loramux_profiles.checked import read_checked
from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile, load_device, with_memory
from loramux_simulator.api import simulate
from loramux_simulator.run import RunResult
from loramux_traces.errors import InvalidInputError, Problem, StateError
from loramux_traces.job import Trace
from loramux_traces.runfolder import Run

TRACE: Final = "trace.csv"
PROFILE: Final = "profile.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A Setting is what a real run ran under."""

    policy: str
    """Policy as `--policy` takes it."""
    seed: int
    max_resident: int | None
    trace: Trace
    device: DeviceProfile


def setting_of(run: Run, *, allow_other: bool = False) -> Setting:
    """Read the setting that the folder of a real run records.

    Raises InvalidInputError for a run that is not real, or cannot be simulated.
    """
    manifest = run.manifest
    if manifest.get("kind") != "real":
        raise _bad(run.path, "is a simulated run; give real ones")
    policy = manifest.get("policy_params") or manifest["policy"]
    seats = manifest.get("max_resident")
    if not isinstance(policy, str):
        raise _bad(run.path / "manifest.json", "policy_params must be the policy's text, as --policy takes it")
    if seats is not None and not isinstance(seats, int):
        raise _bad(run.path / "manifest.json", f"max_resident must be a number of jobs or null, not {seats!r}")
    for name in (TRACE, PROFILE):
        if not (run.path / name).is_file():
            raise _bad(run.path / name, "is missing: a run of a trace leaves it (loramux run --trace)")
    if manifest.get("policy_changes"):
        raise _bad(run.path / "manifest.json", "its policy was changed while it ran: no one policy can be simulated")
    device = load_device(str(run.path / PROFILE), allow_other=allow_other)
    memory_bytes = manifest.get("memory_bytes")
    if isinstance(memory_bytes, int | float) and memory_bytes > 0:
        device = with_memory(device, float(memory_bytes), "--memory of the run")
    return Setting(
        policy=policy,
        seed=run.seed,
        max_resident=seats,
        trace=read_checked(run.path / TRACE),
        device=device,
    )


def _bad(path: Path, allowed: str) -> InvalidInputError:
    return InvalidInputError([Problem(file=str(path), line=0, column="", value="", allowed=allowed)])


def simulate_setting(setting: Setting, *, seed: int, factor: float = 1.0) -> RunResult:
    """Simulate the run at step fidelity, as a live scheduler decides it.

    The machine takes `factor` times the predicted step times. Raises what `simulate` raises.
    """
    result = simulate(
        setting.trace,
        create(setting.policy),
        devices=(setting.device,),
        fidelity="step",
        max_resident=setting.max_resident,
        seed=seed,
        step_time_factor=factor,
        live=True,
    )
    # The text as --policy takes it, because two runs of one policy may differ in its parameters.
    result.policy = setting.policy
    return result


@dataclass(frozen=True, slots=True)
class StepTimes:
    """StepTimes sums the seconds of the fused steps of one or several real runs."""

    steps: int = 0
    measured_s: float = 0.0
    predicted_s: float = 0.0

    def __add__(self, other: StepTimes) -> StepTimes:
        return StepTimes(
            self.steps + other.steps, self.measured_s + other.measured_s, self.predicted_s + other.predicted_s
        )

    @property
    def factor(self) -> float | None:
        """How much slower the machine was than its profile says; None where no step is known."""
        return self.measured_s / self.predicted_s if self.predicted_s > 0 and self.measured_s > 0 else None


def step_times(run: Run, setting: Setting) -> StepTimes:
    """Return measured seconds of a run's fused steps, and what the profile says of the same rows.

    They come from the recorded stream (`loramux_policies.stepping.stream`). Where the run kept
    none, its own account of the refit (`prediction` in summary.json) stands for it, in units of its
    steps. Raises StateError where a recorded step is not one of the run's trace.
    """
    steps = [event for event in run.events() if event.get("event") == "step" and not event.get("oom")]
    if steps:
        try:
            return _of_steps(steps, setting)
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{run.path}: a step of its events is not one of its trace ({error!r})") from error
    said: Mapping[str, Any] = run.summary.get("prediction") or {}
    count, factor = said.get("steps") or 0, said.get("time_factor")
    return StepTimes(int(count), float(count) * float(factor), float(count)) if count and factor else StepTimes()


def _of_steps(steps: Sequence[Mapping[str, Any]], setting: Setting) -> StepTimes:
    model = CostModel(setting.device, folder=setting.trace.folder)
    costs = {spec.job_id: model.job_cost(spec) for spec in setting.trace.jobs}
    measured = predicted = 0.0
    for event in steps:
        entries: Iterable[tuple[str, Sequence[int]]] = event["entries"]
        lengths = {job_id: np.asarray(rows, dtype=np.int64) for job_id, rows in entries}
        seconds, _ = model.step_s([costs[job_id] for job_id in lengths], list(lengths.values()))
        predicted += seconds
        measured += float(event["t_s"]) - float(event["began_s"])
    return StepTimes(len(steps), measured, predicted)
