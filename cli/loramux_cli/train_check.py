"""This module prints what `loramux train --dry-run` has found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from loramux_cli.estimate import gib

if TYPE_CHECKING:
    from loramux_runtime.train.checks import Checked


def show(checked: Checked, device: str, *, as_json: bool, quiet: bool) -> None:
    """Print a line for each job, whether it fits the device, and how many fit at one time."""
    from loramux_runtime.train.checks import summary
    from loramux_runtime.train.run import grouped_notes

    jobs = summary(checked)
    fit = len(checked.costs)
    if as_json:
        from loramux_traces.filesafe import json_text

        figures = {"capacity_bytes": checked.capacity_bytes, "together": checked.together}
        figures |= {"together_bytes": checked.together_bytes}
        report = {"schema_version": 1, "device": device, **figures, "jobs": jobs, "never": checked.never}
        typer.echo(json_text(report, indent=2))
    else:
        _table(jobs)
        said = f"the first {checked.together:,} of {fit:,} jobs" if checked.together < fit else f"all {fit:,} jobs"
        most = f"{said} fit at one time, with at most {gib(checked.together_bytes)}" if fit else "no job fits"
        typer.echo(f"\n{device} has {gib(checked.capacity_bytes)} to use: {most} (predicted)")
    if not quiet:
        for note in grouped_notes(checked.prepared):
            typer.echo(f"note: {note}", err=True)
        typer.echo("nothing was trained or written (--dry-run)", err=True)
    for job_id, why in checked.never.items():
        typer.echo(f"loramux: {job_id} can never run on {device}: {why}", err=True)


def _table(jobs: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    heads = (
        "job",
        "method",
        "rows",
        "held\nout",
        "steps",
        "tokens",
        "longest\nrow",
        "cut",
        "left\nout",
        "needs\nalone",
    )
    for head in (*heads, ""):
        table.add_column(head, justify="left" if head in ("job", "method", "") else "right", no_wrap=True)
    for job in jobs:
        counts = ("rows", "held_out", "steps", "tokens", "longest", "cut", "left_out")
        cells = ["-" if job[name] is None else f"{job[name]:,}" for name in counts]
        need = "-" if job["need_bytes"] is None else gib(job["need_bytes"])
        table.add_row(Text(job["job_id"]), job["method"], *cells, need, "fits" if job["fits"] else "TOO LARGE")
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
