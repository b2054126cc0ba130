"""This module prints what `loramux train` does and what has become of its jobs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loramux_runtime.jobs.jobs_file import JobsFile
    from loramux_runtime.train.progress import Progress
    from loramux_runtime.train.run import TrainResult


def table(file: JobsFile, result: TrainResult) -> None:
    """Print a line for each job, and one for the run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_cli.words import duration

    losses: dict[str, list[float]] = {}
    for row in result.training:
        if row["loss"] is not None:
            losses.setdefault(row["job_id"], []).append(row["loss"])
    scored = bool(result.scores)
    shown = Table(box=None, pad_edge=False)
    names = ["job", "method", "steps", "loss", "\nlast", "turn-\naround"]
    names += ["held-out\nbefore", "\nafter", "exact\nbefore", "\nafter"] if scored else []
    for name in names:
        shown.add_column(name, justify="left" if name in ("job", "method") else "right", no_wrap=True)
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
        shown.add_row(Text(job.id), *cells)
    console = Console()
    console.print(shown)
    s = result.summary
    console.print(
        f"{s['completed']}/{s['jobs']} jobs in {duration(s['makespan_s'])}, {s['steps']:.0f} fused steps, "
        f"{s['effective_tokens_per_s']:,.0f} tokens/s. Measured on {result.device}"
    )


def completed(result: TrainResult) -> list[str]:
    """Return the jobs that have an adapter."""
    from loramux_traces.results import COMPLETED

    return [str(job_id) for job_id in result.jobs.loc[result.jobs["final_state"] == COMPLETED, "job_id"]]


def predicted(facts: dict[str, Any]) -> str:
    """Return how far the profile's predictions were off, in words."""
    text = f"step times were predicted within {facts['time_mape']:.1%} in the mean by the profile"
    text += f", {facts['time_mape_refitted']:.1%} as refitted on the way (factor {facts['time_factor']:.2f})"
    if "memory_mape" in facts:
        text += f"; memory within {facts['memory_mape']:.2%}, {facts['above_bound']} steps above the bound"
    return text


def standing(progress: Progress, how: str) -> str:
    """Return how a run ended, how far its jobs are, and the command that goes on."""
    from loramux_traces.errors import StateError

    try:
        first, *lines = progress.standing()
    except StateError as error:
        return f"{how}: {error}"
    return "\n".join([f"{how}: {first}", *lines, f"go on with: {command_that_goes_on()}"])


def command_that_goes_on() -> str:
    """Return the command line of this process, for the shell, with --resume."""
    words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
    return shlex.join(["loramux", *words, "--resume"])


@contextmanager
def progress_bar(file: JobsFile, *, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Give what shows each record of training on a terminal; None where there is no terminal."""
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
