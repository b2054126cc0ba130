"""Run policies x loads x seeds, in parallel and resumable.

The result is one tidy table with a row per run.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Final

import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs

from loramux_policies.errors import PolicyError
from loramux_policies.registry import create, load_file
from loramux_profiles.devices import DeviceProfile
from loramux_simulator.api import simulate
from loramux_simulator.offered_load import at_load, load_or_none
from loramux_simulator.options import SimOptions
from loramux_simulator.run import weakest_origin
from loramux_traces.batches import batch_columns
from loramux_traces.errors import StateError, UsageError
from loramux_traces.filesafe import json_text, read_json_object, write_json
from loramux_traces.job import Trace
from loramux_traces.results import UNSCHEDULABLE
from loramux_traces.tidy import FAILED_COLUMN, flatten_summary, read_results, write_results

RESULTS: Final = "results.csv"
MANIFEST: Final = "manifest.json"
SOURCES: Final = "policy_sha256"
SAVE_EVERY_S: Final = 2.0
ROUNDS: Final = 4
"""Runs for each worker in one list, because some backends of joblib give no result before the list
is done.
"""
MOST_NAMED: Final = 5
"""Jobs that fit no device which a row names."""
EVERYTHING: Final = "all jobs and their arrivals"
"""What a seed redraws where it has the trace generated anew."""
Point = tuple[str, float | None, int]
"""Policy text, load (None: the trace as it is), seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A Generated trace is drawn anew for each seed.

    It is `loramux_traces.generators.generate(kind, seed=seed, **parameters)`.
    """

    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def trace(self, seed: int) -> Trace:
        """Return the jobs of one seed, with the provenance that says that they are modelled."""
        from loramux_traces.generators import generate

        return generate(self.kind, seed=seed, **self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A SweepPlan says what to run: every policy at every load with every seed.

    All policies meet the same jobs (common random numbers).
    """

    trace: Trace | Generated
    policies: tuple[str, ...]
    devices: tuple[DeviceProfile, ...]
    seeds: tuple[int, ...] = (0,)
    loads: tuple[float | None, ...] = (None,)
    policy_files: tuple[Path, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of `SimOptions` except the seed."""

    def __post_init__(self) -> None:
        """Raise UsageError for a plan that no run could be made of."""
        points = self.points()
        if len(set(points)) < len(points):
            raise UsageError("a sweep must not name the same policy, load or seed twice")
        for load in self.loads:
            if load is not None and not 0.0 < load < float("inf"):
                raise UsageError(f"load must be above 0, not {load}")

    def points(self) -> list[Point]:
        """Return all runs in the order of the table."""
        return [(policy, load, seed) for load in self.loads for policy in self.policies for seed in self.seeds]

    def sources(self) -> dict[str, str]:
        """Return the SHA-256 of the file that defines each policy.

        What that file imports is not looked at.
        """
        for file in self.policy_files:
            load_file(file)
        return {text: _source(text) for text in self.policies}

    def describe(self) -> dict[str, Any]:
        """Return what must be equal for an interrupted sweep to be resumed."""
        trace = self.trace
        if isinstance(trace, Generated):
            first = trace.trace(self.seeds[0])
            what: dict[str, Any] = {
                "name": trace.kind,
                "generated": trace.kind,
                "parameters": trace.parameters,
                "provenance": f"{first.provenance} (seed {self.seeds[0]}; every seed draws its own jobs)",
            }
        else:
            what = {"name": trace.name, "sha256": trace.sha256, "provenance": trace.provenance, "jobs": len(trace)}
        return {
            "schema_version": 1,
            "kind": "simulated",
            "trace": what,
            "devices": [device.name for device in self.devices],
            "profile_sha256": sorted({device.digest for device in self.devices}),
            "options": dict(self.options),
            "fidelity": self.options.get("fidelity", "rate"),
            "fusion": self.options.get("fusion", "packed"),
            "ideal": self.options.get("ideal", False),
            "origin": weakest_origin(self.devices),
        }


def _source(policy: str) -> str:
    try:
        return sha256(Path(inspect.getfile(type(create(policy)))).read_bytes()).hexdigest()
    except (TypeError, OSError):  # defined in no file
        return ""


def sweep(
    plan: SweepPlan,
    *,
    out: Path | None = None,
    n_jobs: int = 1,
    backend: str | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Run the plan and return the table, a row per run.

    Rows already in `out`/results.csv are kept with `resume`. `n_jobs`, `backend`: joblib's (-1: all
    cores; `backend="ray"` once ray's joblib backend is registered). A run that a policy's fault
    ended has a row without figures, and the error in the column `policy_error`; `resume` tries it
    again. Raises what else `simulate` raises, and StateError where `out` holds another sweep.
    """
    points = plan.points()
    sources = plan.sources()
    out = None if out is None else out.absolute()
    done, before = _resume(plan, sources, out) if resume and out is not None else ({}, {})
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MANIFEST, plan.describe() | {SOURCES: before | sources, "argv": sys.argv})
    todo = [point for point in points if point not in done]
    known = len(points) - len(todo)
    if progress is not None:
        progress(known, len(points))
    saved = -SAVE_EVERY_S  # the first row is saved at once
    try:
        for point, row in _run(plan, todo, n_jobs, backend):
            done[point] = row
            known += 1
            if progress is not None:
                progress(known, len(points))
            if out is not None and time.monotonic() - saved > SAVE_EVERY_S:
                write_results(out / RESULTS, _table(points, done))
                saved = time.monotonic()
    except BrokenProcessPool as error:
        raise PolicyError(
            f"a worker process died after {known} of {len(points)} runs: a policy ended it, or memory ran out. The "
            "rows so far are kept; --resume goes on, and --workers 1 runs it in one process"
        ) from error
    except UsageError:
        if out is not None and not done and not (out / RESULTS).exists():
            (out / MANIFEST).unlink()  # nothing was run: leave nothing behind
        raise
    finally:
        if out is not None and done:
            write_results(out / RESULTS, _table(points, done))
    return _table(points, done)


def _run(
    plan: SweepPlan, todo: Sequence[Point], n_jobs: int, backend: str | None
) -> Iterator[tuple[Point, dict[str, Any]]]:
    if n_jobs == 1 or len(todo) <= 1:
        for point in todo:
            yield point, run_point(plan, point)
        return
    # Ray's backend gives lists only, so rows are known, and saved, a list at a time.
    if backend == "ray":
        with Parallel(n_jobs=n_jobs, backend=backend) as lists:
            size = ROUNDS * max(1, effective_n_jobs(n_jobs))
            for start in range(0, len(todo), size):
                yield from lists(delayed(_named)(plan, point) for point in todo[start : start + size])
        return
    pool = Parallel(n_jobs=n_jobs, backend=backend, return_as="generator_unordered")
    yield from pool(delayed(_named)(plan, point) for point in todo)


def _named(plan: SweepPlan, point: Point) -> tuple[Point, dict[str, Any]]:
    if current_thread() is not main_thread():  # sys.stdout belongs to the whole process
        return point, run_point(plan, point)
    # What a policy prints in a worker must not reach the stdout of the command.
    with redirect_stdout(sys.stderr):
        return point, run_point(plan, point)


def run_point(plan: SweepPlan, point: Point) -> dict[str, Any]:
    """Run one point of the sweep and return it as a row of the table."""
    policy, load, seed = point
    for file in plan.policy_files:
        load_file(file)
    trace = plan.trace.trace(seed) if isinstance(plan.trace, Generated) else plan.trace
    options = SimOptions(**plan.options)
    if load is not None:
        trace = at_load(trace, load, plan.devices, options)
    row = {
        "policy": policy,
        "params": policy.partition(":")[2],
        "load": load,
        "seed": seed,
        "fidelity": options.fidelity,
        "devices": str(len(plan.devices)),
        "offered_load": load_or_none(trace, plan.devices, options),
        "provenance": trace.provenance,
    }
    try:
        result = simulate(trace, create(policy), devices=plan.devices, timeline=False, seed=seed, **plan.options)
    except PolicyError as error:  # the runs of other policies are worth having all the same
        return row | {FAILED_COLUMN: str(error)}
    generated = isinstance(plan.trace, Generated)
    unfit = result.jobs[result.jobs["final_state"] == UNSCHEDULABLE]["job_id"].astype(str)
    return row | {
        "seed_redraws": EVERYTHING if generated else "; ".join(result.seed_redraws),
        "interval_over": "seeds" if generated and len(plan.seeds) > 1 else "jobs",
        **flatten_summary(result.summary),
        "unfit_jobs": " ".join(unfit[:MOST_NAMED]),
        **batch_columns(result.jobs, options.warmup),
    }


def _same(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a sweep's manifest without what follows from the rest, for it may be an older one."""
    trace = manifest.get("trace")
    if not isinstance(trace, dict) or "generated" not in trace:
        return manifest
    return manifest | {"trace": {name: trace.get(name) for name in ("generated", "parameters")}}


def _table(points: Sequence[Point], done: dict[Point, dict[str, Any]]) -> pd.DataFrame:
    """Return the plan's rows in its order, then what the folder held beside them.

    A resumed sweep may ask for other points than the ones before it.
    """
    wanted = set(points)
    rows = [done[point] for point in points if point in done]
    return pd.DataFrame(rows + [row for point, row in done.items() if point not in wanted])


def _resume(plan: SweepPlan, sources: dict[str, str], out: Path) -> tuple[dict[Point, dict[str, Any]], dict[str, str]]:
    """Return the rows that the folder has, and the sources of their policies.

    Raises StateError where the folder holds another sweep, or the code of a policy has changed.
    """
    if not (out / RESULTS).is_file():
        return {}, {}
    found = read_json_object(out / MANIFEST)
    found.pop("argv", None)
    before = found.pop(SOURCES, {})
    if not isinstance(before, dict):
        raise StateError(f"{out / MANIFEST}: {SOURCES} is not an object; --force starts anew")
    rows = read_results(out / RESULTS)
    if FAILED_COLUMN in rows.columns:
        rows = rows[rows[FAILED_COLUMN] == ""].drop(columns=FAILED_COLUMN)
    kept = set(rows["policy"].astype(str))
    edited = sorted(text for text, digest in sources.items() if text in kept and before.get(text, digest) != digest)
    if edited:
        raise StateError(
            f"{out}: the code of {', '.join(edited)} has changed since its rows were made: "
            "use --force or another folder"
        )
    if json_text(_same(plan.describe())) != json_text(_same(found)):
        raise StateError(f"{out} holds another sweep (trace, devices or options differ): use --force or another folder")
    done: dict[Point, dict[str, Any]] = {}
    try:
        for row in rows.to_dict(orient="records"):
            load = row["load"]
            key = (str(row["policy"]), None if pd.isna(load) else float(load), int(row["seed"]))
            done[key] = {str(name): value for name, value in row.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"{out / RESULTS}: not a table of this sweep ({error}); --force starts anew") from error
    return done, before
