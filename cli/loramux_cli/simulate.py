"""This module is `loramux simulate` (and `simulate` alone).

It replays one trace under one or more policies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_traces.errors import printable

if TYPE_CHECKING:
    from loramux_cli.simulate_view import PolicyFailure
    from loramux_simulator import RunResult
    from loramux_traces.job import Trace

EXIT_FAILED_JOBS = 3
EXIT_NEVER_FITS = 4


def simulate_command(
    trace: o.Trace = None,
    policy: o.PolicyName = None,
    policy_file: o.PolicyFile = None,
    devices: o.Devices = None,
    device_profile: o.DeviceProfile = None,
    allow_other: o.AllowOther = False,
    memory: o.Memory = None,
    fusion: o.Fusion = "packed",
    fidelity: o.Fidelity = "rate",
    max_resident: o.MaxResident = None,
    ideal: o.Ideal = False,
    speedup_curve: o.SpeedupCurve = None,
    prediction_error: o.PredictionError = 0.0,
    multi_gpu: o.MultiGpu = "gang",
    warmup: o.Warmup = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="First seed.")] = 0,
    seeds: o.Seeds = 1,
    out: o.Out = None,
    plots: Annotated[bool, typer.Option("--plots", help="Draw charts into --out.")] = False,
    events: Annotated[bool, typer.Option("--events/--no-events", help="Write events.jsonl in --out.")] = True,
    explain: Annotated[
        str | None, typer.Option(metavar="JOB_ID", help="Say on stderr what this job waits for, at every decision.")
    ] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Simulate a trace of fine-tuning jobs under scheduling policies.

    Without options: the shipped sample.
    """
    from loramux_cli import running
    from loramux_cli.simulate_view import by_text, show_simulation, simulation_report
    from loramux_policies.errors import PolicyError
    from loramux_policies.registry import create
    from loramux_simulator import SimOptions, simulate
    from loramux_simulator.offered_load import load_or_none
    from loramux_traces.errors import UsageError

    names = running.load_policies(policy, policy_file)
    chosen: dict[str, Any] = {
        "fusion": fusion,
        "fidelity": fidelity,
        "max_resident": max_resident,
        "ideal": ideal,
        "speedup_curve": speedup_curve,
        "prediction_error": prediction_error,
        "multi_gpu": multi_gpu,
        "warmup": warmup,
    }
    options = SimOptions(**chosen)
    if plots and out is None:
        raise UsageError("--plots needs --out DIR")
    profiles = running.load_devices(
        devices, device_profile, sample=trace is None, allow_other=allow_other, memory=memory
    )
    jobs = running.load_trace(trace)
    if explain is not None and explain not in {spec.job_id for spec in jobs.jobs}:
        raise UsageError(f"--explain: the trace has no job {explain!r}")
    with running.hold(out):
        if out is not None:
            from loramux_traces.runfolder import prepare_folder, run_folder_name

            folders = [run_folder_name(name, seed) for name in names]
            for folder in folders:
                if folders.count(folder) > 1:
                    raise UsageError(f"--out: two of these policies would both write {folder}; run them one by one")
            prepare_folder(out, force=force)
        results: list[tuple[str, RunResult]] = []
        errors: list[PolicyFailure] = []
        load = load_or_none(jobs, profiles, options)
        for name in names:
            for number in range(seed, seed + seeds):
                try:
                    with _progress(f"{name} seed {number}", len(jobs), quiet=quiet) as tell, running.prints_aside():
                        result = simulate(
                            jobs,
                            create(name),
                            devices=profiles,
                            events=events and out is not None,
                            timeline=out is not None,
                            progress=tell,
                            on_plan=None if explain is None else _explainer(explain, name),
                            seed=number,
                            **chosen,
                        )
                except PolicyError as error:  # the other policies' results are worth having all the same
                    errors.append({"policy": name, "seed": number, "error": str(error)})
                    continue
                result.policy = name
                results.append((name, result))
                if out is not None:
                    _write(out, name, result, jobs, profiles, load)
        if not results:
            raise PolicyError("\n".join(by_text(errors)))
        report = simulation_report(running.trace_facts(jobs), results, errors, load, seeds)
        if out is not None:
            from loramux_traces.filesafe import write_json

            write_json(out / "summary.json", report)
            write_json(out / "manifest.json", {"schema_version": 1, "kind": "simulated", "argv": sys.argv})
            if plots:
                draw(out, quiet=quiet)
        if as_json:
            from loramux_traces.filesafe import json_text

            typer.echo(json_text(report, indent=2))
        else:
            show_simulation(jobs, results, report)
        for text, rows in by_text(errors).items():
            typer.echo(
                f"loramux: {text}" + (f" (and so with {len(rows) - 1} other seeds)" if rows[1:] else ""), err=True
            )
        if not quiet:
            _notes(results)
        _exit(results, errors)


def _write(out: Path, name: str, result: RunResult, trace: Trace, profiles: Sequence[Any], load: float | None) -> None:
    from loramux_cli.running import manifest
    from loramux_traces.runfolder import prepare_folder, run_folder_name, write_run

    write_run(
        prepare_folder(
            out / run_folder_name(name, result.seed), resume=True
        ),  # cleared with `out`, but for strangers' files
        manifest=manifest(result, name, trace, profiles, sys.argv) | {"offered_load": load},
        jobs=result.jobs,
        events=result.events,
        summary=result.entry(),
        timeline=result.timeline,
    )


def draw(out: Path, *, quiet: bool) -> None:
    from loramux_analysis.load import load
    from loramux_analysis.plots import draw_charts

    def tell(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    draw_charts(load([out]), out / "plots", (), tell=tell)


def _notes(results: Sequence[tuple[str, RunResult]]) -> None:
    told: set[tuple[str, str]] = set()
    for name, result in results:
        s = result.summary
        for note in s["notes"]:
            typer.echo(f"note: {name}: {note}", err=True)
        ended = result.jobs[result.jobs["reason"] != ""]
        rows = zip(
            ended["job_id"].astype(str), ended["final_state"].astype(str), ended["reason"].astype(str), strict=True
        )
        fresh = [row for row in rows if (row[0], row[2]) not in told]
        if not fresh:
            continue
        counts = f"{s['failed']} jobs failed, {s['unschedulable']} fit no device, {s['rejected']} were turned away"
        typer.echo(f"note: {name}: {counts}, for example", err=True)
        for job_id, state, reason in fresh[:3]:
            typer.echo(printable(f"  {job_id}: {state}: {reason}"), err=True)
        told |= {(job_id, reason) for job_id, _, reason in fresh}


def _exit(results: Sequence[tuple[str, RunResult]], errors: Sequence[PolicyFailure]) -> None:
    if errors:
        from loramux_policies.errors import PolicyError

        raise typer.Exit(PolicyError.exit_code)
    if any(result.hopeless for _, result in results):
        raise typer.Exit(EXIT_NEVER_FITS)
    if any(result.summary["failed"] for _, result in results):
        raise typer.Exit(EXIT_FAILED_JOBS)


def _explainer(job_id: str, policy: str) -> Callable[[Any, Any], None]:
    from loramux_policies.loop.explain import why

    last = ""

    def tell(view: Any, plan: Any) -> None:
        nonlocal last
        reason = why(view, plan, job_id)
        if reason and reason != last:
            typer.echo(f"{policy} {view.now_s:.3f} s: {reason}", err=True)
            last = reason

    return tell


@contextmanager
def _progress(title: str, total: int, *, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, _: bar.update(task, completed=done)
