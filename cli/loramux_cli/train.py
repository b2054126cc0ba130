"""This module is `loramux train`: it trains the jobs of a file together on one device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_cli.device_choice import choose_profile, need_torch

if TYPE_CHECKING:
    from loramux_runtime.jobs.jobs_file import JobsFile
    from loramux_runtime.train.run import TrainResult, TrainRun

EXIT_FAILED_JOBS = 3
EXIT_NEVER_FITS = 4


def train_command(
    jobs: Annotated[Path, typer.Argument(help="jobs.yaml: the base model and the jobs (runtime/examples has some).")],
    policy: Annotated[str, typer.Option(help="Policy, as for simulate.")] = "aspen",
    policy_file: o.PolicyFile = None,
    device: o.TorchDevice = "auto",
    device_profile: o.ProfileName = None,
    allow_other: o.AllowOther = False,
    memory: o.JobMemory = None,
    max_resident: o.Residents = None,
    recompute: o.Recompute = False,
    threads: o.Threads = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Write every fused step into events.jsonl too, for loramux.replay."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results and adapters.")] = Path("train"),
    plots: Annotated[bool, typer.Option("--plots", help="Draw charts into --out.")] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Train many adapters in one fused step over one frozen base model, each as if alone."""
    from loramux_cli import running
    from loramux_traces.errors import StateError
    from loramux_traces.runfolder import prepare_folder

    need_torch()
    from loramux_policies.registry import create
    from loramux_runtime.fused.memory_meter import keep_freed_memory
    from loramux_runtime.fused.torch_devices import choose_device, set_threads
    from loramux_runtime.jobs.bases import open_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.train.run import TrainRun

    running.load_policies([policy], policy_file)
    file = read_jobs_file(jobs)
    where = choose_device(device)
    profile = choose_profile(where, device_profile, memory, allow_other=allow_other)
    with running.hold(out):
        if not force:
            # with --force, nothing is removed before every job has been checked
            prepare_folder(out)
        if not quiet:
            typer.echo(f"loading {file.base.path or file.base.shape or 'a tiny model'} on {where}", err=True)
        base = open_base(file.base, where)
        set_threads(threads, base.sites.hidden)
        if where.type == "cpu":
            keep_freed_memory()
        with _progress(file, quiet=quiet) as tell, running.prints_aside():
            run = TrainRun(
                file,
                create(policy),
                profile,
                base=base,
                adapters_dir=out / "adapters",
                recompute=recompute,
                max_resident=float("inf") if max_resident is None else float(max_resident),
                log=tell,
                record=record,
            )
            if force:
                prepare_folder(out, force=True, also=("training.jsonl",))
            if not quiet:
                typer.echo(f"training {len(run.specs)} jobs under {policy}", err=True)
            result = run.play()
        _write(out, jobs, policy, profile, run, result)
        if plots:
            _draw(out, quiet=quiet)
        report = {"schema_version": 1, "runs": [_entry(policy, result)]}
        if as_json:
            from loramux_traces.filesafe import json_text

            typer.echo(json_text(report, indent=2))
        else:
            _table(file, result)
        if not quiet:
            for note in result.summary["notes"]:
                typer.echo(f"note: {note}", err=True)
            for ended in result.jobs[result.jobs["reason"] != ""].to_dict("records"):
                typer.echo(f"note: {ended['job_id']}: {ended['final_state']}: {ended['reason']}", err=True)
            if result.prediction is not None and result.prediction["steps"]:
                typer.echo(_predicted(result.prediction), err=True)
            typer.echo(f"adapters and results are in {out}", err=True)
        for problem in run.unsaved:
            typer.echo(f"loramux: {problem}", err=True)
        if run.unsaved:
            raise typer.Exit(StateError.exit_code)
        if result.stopped_by is not None:
            raise typer.Exit(128 + result.stopped_by)
        if result.hopeless:
            raise typer.Exit(EXIT_NEVER_FITS)
        if result.summary["failed"]:
            raise typer.Exit(EXIT_FAILED_JOBS)


def _entry(policy: str, result: TrainResult) -> dict[str, Any]:
    return {"policy": policy, "seed": 0, **result.summary, "evaluation": result.scores, "prediction": result.prediction}


def _predicted(facts: dict[str, Any]) -> str:
    text = f"step times were predicted within {facts['time_mape']:.1%} in the mean by the profile"
    text += f", {facts['time_mape_refitted']:.1%} as refitted on the way (factor {facts['time_factor']:.2f})"
    if "memory_mape" in facts:
        text += f"; memory within {facts['memory_mape']:.2%}, {facts['above_bound']} steps above the bound"
    return text


def _write(out: Path, jobs: Path, policy: str, profile: Any, run: TrainRun, result: TrainResult) -> None:
    import hashlib
    from importlib.metadata import version

    from loramux_traces.filesafe import write_jsonl
    from loramux_traces.runfolder import write_run

    write_jsonl(out / "training.jsonl", result.training)
    packages = ("loramux", "torch", "transformers", "numpy")
    write_run(
        out,
        manifest={
            "kind": "real",
            "policy": policy,
            "policy_params": policy,
            "seed": 0,
            "argv": list(sys.argv),
            "trace": {
                "name": jobs.name,
                "sha256": hashlib.sha256(jobs.read_bytes()).hexdigest(),
                "provenance": "",
                "jobs": len(run.specs),
            },
            "devices": [str(run.model.base.device)],
            "base_model": run.model.base.name,
            "profile_sha256": profile.digest,
            "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
            "origin": "measured",
        },
        jobs=result.jobs,
        events=result.events,
        summary=_entry(policy, result),
        timeline=result.timeline,
    )


def _draw(out: Path, *, quiet: bool) -> None:
    from loramux_cli.simulate import draw

    draw(out, quiet=quiet)


def _table(file: JobsFile, result: TrainResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_cli.words import duration

    losses: dict[str, list[float]] = {}
    for row in result.training:
        if row["loss"] is not None:
            losses.setdefault(row["job_id"], []).append(row["loss"])
    scored = bool(result.scores)
    table = Table(box=None, pad_edge=False)
    names = ["job", "method", "steps", "loss", "\nlast", "turn-\naround"]
    names += ["held-out\nbefore", "\nafter", "exact\nbefore", "\nafter"] if scored else []
    for name in names:
        table.add_column(name, justify="left" if name in ("job", "method") else "right", no_wrap=True)
    rows = {str(row["job_id"]): row for row in result.jobs.to_dict("records")}
    for job in file.jobs:
        done: Any = rows[job.id]
        seen = losses.get(job.id, [])
        ends = [f"{seen[0]:.3f}", f"{seen[-1]:.3f}"] if seen else ["-", "-"]
        turnaround = done["turnaround_time"]
        cells = [job.method, f"{done['steps_done']:.0f}", *ends, duration(turnaround if turnaround >= 0 else None)]
        if scored:
            score = result.scores.get(job.id)
            for key, form in (("loss", ".3f"), ("exact_match", ".1%")):
                cells += [f"{score[when][key]:{form}}" if score else "-" for when in ("before", "after")]
        table.add_row(Text(job.id), *cells)
    console = Console()
    console.print(table)
    s = result.summary
    console.print(
        f"{s['completed']}/{s['jobs']} jobs in {duration(s['makespan_s'])}, {s['steps']:.0f} fused steps, "
        f"{s['effective_tokens_per_s']:,.0f} tokens/s. Measured on {result.device}"
    )


@contextmanager
def _progress(file: JobsFile, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {job.id: bar.add_task(job.id, total=job.steps, loss="") for job in file.jobs}

        def tell(row: dict[str, Any]) -> None:
            loss = "not finite" if row["loss"] is None else f"loss {row['loss']:.3f}"
            bar.update(tasks[row["job_id"]], completed=row["step"], total=row["total_steps"], loss=loss)

        yield tell
