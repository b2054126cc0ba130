"""This module is `loramux evaluate`.

It sets published evaluations beside what the simulator says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux_cli import options as o
from loramux_cli.terms import epilog

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    name="evaluate",
    help="Set published evaluations beside what the simulator says.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _group() -> None:
    """Set published evaluations beside what the simulator says."""


@app.command("aspen", epilog=epilog("evaluate"))
def aspen_command(
    out: Annotated[Path, typer.Option(help="Folder for evaluation.md, evaluation.csv and the charts.")] = Path(
        "aspen-evaluation"
    ),
    fidelity: Annotated[
        str,
        typer.Option(help="step (every fused step) or rate (rows shuffled: sorted ones have no constant rate)."),
    ] = "step",
    scale: Annotated[float, typer.Option(min=1.0, max=10_000.0, help="Divide the rows of every job by this.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the lengths.")] = 0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """ASPEN (arXiv 2312.02515): simulate its 8 jobs under its policies and baselines.

    The published and the simulated figures stand side by side.
    """
    from loramux.evaluations import aspen
    from loramux_cli import running
    from loramux_simulator import SimOptions
    from loramux_traces.filesafe import json_text, write_json
    from loramux_traces.runfolder import MANIFEST, prepare_folder

    SimOptions(fidelity=fidelity)  # type: ignore[arg-type]  # checked there
    with running.hold(out):
        prepare_folder(out, force=force, also=aspen.FILES)
        write_json(out / MANIFEST, {"schema_version": 1, "kind": "evaluation", "evaluation": "aspen", "argv": sys.argv})
        tell = (lambda _: None) if quiet else (lambda line: typer.echo(line, err=True))
        found = aspen.evaluate(fidelity, scale, seed, tell)
        aspen.write(out, found, fidelity, scale, seed)
        if as_json:
            typer.echo(json_text(found.report(), indent=2))
        else:
            _show(found.table, found.varied)
        if not quiet:
            typer.echo(f"written to {out / 'evaluation.md'}", err=True)


def _show(table: pd.DataFrame, varied: pd.DataFrame) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from loramux_analysis import aspen_evaluation as a
    from loramux_analysis import aspen_published as p

    console = Console()

    def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for place, column in enumerate(columns):
            shown.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)

    base = "relative to sequential"
    for metric in ("latency_h", "effective_tokens_per_s"):
        part = table[(table["experiment"] == p.MIXED) & (table["metric"] == metric)]
        cells = [(c[0], c[2], c[3], c[5], c[6], c[7]) for c in a.table_cells(part)]
        show(
            f"Mixed lengths: {p.METRICS[metric][0]}, {p.METRICS[metric][1]}",
            ("system", "published", "ours", f"{base}: published", "ours", "difference"), cells,
        )  # fmt: skip
    show("Claims", ("claim", "abstract", "figures", "ours"), [c[:4] for c in a.claim_cells(a.claims(table))])
    names = ("case", "minpad / sequential", "fifo / sequential", "order")
    show(
        "What the order depends on", names,
        [[f"{row[n]:.2f}" if isinstance(row[n], float) else str(row[n]) for n in names] for row in a.records(varied)],
    )  # fmt: skip
    verdict = "comes out" if a.order_holds(table) else "does not come out"
    console.print(Text(f"minpad < sequential < fifo, rows ordered as released: {verdict}. Simulated; no GPU measured."))
