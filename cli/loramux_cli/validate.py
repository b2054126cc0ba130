"""This module is `loramux validate`.

It puts real runs of a trace against simulations of the very same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o

if TYPE_CHECKING:
    from loramux_analysis.validation import Twin, Validation
    from loramux_simulator.real_runs import Setting, StepTimes
    from loramux_traces.runfolder import Run

EXIT_MISSED = 3
COLUMNS = (
    "real\nmean",
    "simu-\nlated",
    "\nerror",
    "real\nspread",
    "jobs\np90",
    "real\np90",
    "make-\nspan",
    "ok",
)


def validate_command(
    real: Annotated[
        list[Path],
        typer.Option(help="Folder of a real run, or of several: policies, and repeats of each. Repeatable."),
    ],
    policy_file: o.PolicyFile = None,
    allow_other: o.AllowOther = False,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Simulations of each real run: with its own seed, and those after it.")
    ] = 1,
    speed_factor: Annotated[
        str,
        typer.Option(
            help="What simulated step times are multiplied by: none, auto (measured over predicted step seconds of "
            "all the real runs, one number), or a number."
        ),
    ] = "none",
    check: Annotated[bool, typer.Option("--check", help="Exit 3 where a criterion is missed.")] = False,
    out: o.Out = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Simulate what real runs did, and say how far the simulation was off.

    The simulation has their trace, policy, seats and device profile.
    """
    from dataclasses import replace

    from loramux_analysis.validation import validate
    from loramux_cli import running
    from loramux_policies.errors import PolicyError
    from loramux_simulator.real_runs import StepTimes, setting_of, step_times
    from loramux_traces.files import real_path
    from loramux_traces.filesafe import json_text
    from loramux_traces.runfolder import find_runs, prepare_folder

    wanted = _factor(speed_factor)
    with running.prints_aside():
        from loramux_policies.registry import load_file

        for file in policy_file or ():
            load_file(file)
    runs = list({real_path(run.path): run for path in real for run in find_runs(path)}.values())
    runs = [run for run in runs if run.manifest.get("kind") == "real"] or runs
    settings = [setting_of(run, allow_other=allow_other) for run in runs]
    _one_trace(runs, settings)
    speeds = [step_times(run, setting) for run, setting in zip(runs, settings, strict=True)]
    times = sum(speeds, StepTimes())
    factor = _applied(wanted, times.factor)
    for note in _notes(runs, speeds, auto=wanted is None):
        typer.echo(f"note: {note}", err=True)
    with running.hold(out), _folder(out) as home:
        if out is not None:
            prepare_folder(out, force=force, also=("validation.json", "validation.csv", "validation.md"))
        with running.prints_aside():
            twins, failed = _twins(runs, settings, seeds=seeds, factor=factor, home=home, quiet=quiet)
        if failed and not twins:
            raise PolicyError("\n".join(dict.fromkeys(failed.values())))
        speed_of = {run.path: speed.factor for run, speed in zip(runs, speeds, strict=True)}
        twins = [replace(twin, speed_factor=speed_of[twin.real.path]) for twin in twins]
        found = validate(twins, speed_factor=times.factor, applied_factor=factor)
        if out is not None:
            _write(out, found, quiet=quiet)
        if as_json:
            typer.echo(json_text(found.to_dict(), indent=2))
        else:
            _show(found, times.steps)
    if failed:
        # what the other policies gave stands above
        raise PolicyError("\n".join(dict.fromkeys(failed.values())))
    if check and found.missed():
        raise typer.Exit(EXIT_MISSED)


def _factor(text: str) -> float | None:
    """Return the factor that is asked for; None for auto."""
    from loramux_traces.errors import UsageError

    if text in ("none", "auto"):
        return 1.0 if text == "none" else None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise UsageError(f"--speed-factor {text[:40]!r}: none, auto, or a number from 0.01 to 100")
    return value


def _applied(wanted: float | None, measured: float | None) -> float:
    from loramux_traces.errors import UsageError

    if wanted is not None:
        return wanted
    if measured is None:
        raise UsageError("--speed-factor auto: the real runs recorded no steps, so nobody knows how fast they were")
    return measured


def _notes(runs: Sequence[Run], speeds: Sequence[StepTimes], *, auto: bool) -> Iterator[str]:
    """Yield what a reader of the figures should know of the real runs."""
    unknown = [str(run.path) for run, speed in zip(runs, speeds, strict=True) if speed.factor is None]
    if auto and unknown:
        yield f"{', '.join(unknown)}: no steps recorded (run --record); the speed factor is that of the other runs"
    for run in runs:
        if run.manifest.get("interruptions"):
            yield f"{run.path}: was interrupted and continued; a simulation knows nothing of the time between"


def _one_trace(runs: Sequence[Run], settings: Sequence[Setting]) -> None:
    """Raise InvalidInputError unless all runs had the same jobs and one device profile.

    Policies are ranked, so they must have been run on the same.
    """
    from loramux_traces.errors import InvalidInputError, Problem

    first = settings[0]
    for run, setting in zip(runs, settings, strict=True):
        for what, mine, other in (
            ("trace", setting.trace.sha256, first.trace.sha256),
            ("device profile", setting.device.digest, first.device.digest),
            ("number of seats (max_resident)", setting.max_resident, first.max_resident),
        ):
            if mine != other:
                allowed = f"has another {what} than {runs[0].path}; validate them one after the other"
                raise InvalidInputError([Problem(file=str(run.path), line=0, column="", value="", allowed=allowed)])


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Yield the folder where simulated runs are kept: --out, or a temporary one."""
    if out is not None:
        yield out
        return
    with TemporaryDirectory(prefix="loramux-validate-") as folder:
        yield Path(folder)


def _twins(
    runs: Sequence[Run], settings: Sequence[Setting], *, seeds: int, factor: float, home: Path, quiet: bool
) -> tuple[list[Twin], dict[str, str]]:
    """Return every real run with its simulations, and what went wrong with which policy.

    What is simulated alike is simulated once. The runs of a policy that fails are left out.
    """
    from loramux_analysis.validation import Twin
    from loramux_cli.running import manifest
    from loramux_policies.errors import PolicyError
    from loramux_simulator.real_runs import simulate_setting
    from loramux_traces.runfolder import prepare_folder, read_run, run_folder_name, write_run

    known: dict[tuple[object, ...], Run] = {}
    twins = []
    failed: dict[str, str] = {}
    for run, setting in zip(runs, settings, strict=True):
        mine: list[Run] = []
        if setting.policy in failed:
            continue
        for seed in range(setting.seed, setting.seed + seeds):
            key = (setting.policy, seed)
            if key not in known:
                if not quiet:
                    typer.echo(f"simulating {setting.policy}, seed {seed}", err=True)
                try:
                    result = simulate_setting(setting, seed=seed, factor=factor)
                except PolicyError as error:
                    failed[setting.policy] = str(error)
                    break
                folder = prepare_folder(home / run_folder_name(setting.policy, seed), resume=True)
                about = manifest(result, setting.policy, setting.trace, (setting.device,), sys.argv)
                # the trace goes by the name that the user knows it by
                about |= {"trace": run.manifest.get("trace", about["trace"])}
                write_run(
                    folder,
                    manifest=about,
                    jobs=result.jobs,
                    events=None,
                    summary=result.entry(),
                    timeline=result.timeline,
                )
                known[key] = read_run(folder)
            mine.append(known[key])
        else:
            twins.append(Twin(setting.policy, run, tuple(mine)))
    return twins, failed


def _write(out: Path, found: Validation, *, quiet: bool) -> None:
    from loramux_analysis.charts.validation import draw
    from loramux_analysis.plots import make_folder
    from loramux_analysis.style import save
    from loramux_analysis.validation_report import markdown
    from loramux_traces.filesafe import write_csv, write_json, write_text
    from loramux_traces.runfolder import MANIFEST, PLOTS

    write_json(out / MANIFEST, {"schema_version": 1, "kind": "simulated", "argv": sys.argv})
    drawings = draw(found)
    make_folder(out / PLOTS)
    for drawing in drawings:
        save(drawing, out / PLOTS)
        if not quiet:
            typer.echo(f"{out / PLOTS / drawing.name}.png", err=True)
    write_csv(out / "validation.csv", found.table())
    write_text(out / "validation.md", markdown(found, [drawing.name for drawing in drawings]))
    write_json(out / "validation.json", found.to_dict())


def _show(found: Validation, steps: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_analysis.validation_report import said
    from loramux_cli.words import duration

    console = Console()
    console.width = max(console.width, 80)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("policy", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.policies:
        cells: list[Any] = [
            duration(row.real_mean_s),
            duration(row.simulated_mean_s),
            f"{row.mean_error:+.1%}" if row.jobs else "-",
            *(_percent(v) for v in (row.spread, row.job_error_p90, row.job_noise_p90)),
            "-" if row.makespan_error is None else f"{row.makespan_error:+.1%}",
            "yes" if row.mean_ok and row.jobs_ok and row.same_jobs else "no",
        ]
        table.add_row(Text(row.policy), *cells)
    console.print(table)
    for line in said(found, steps):
        console.print(Text(line), soft_wrap=True)
    console.print("What the columns mean: loramux validate -h", style="dim")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
