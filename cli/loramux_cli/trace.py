"""This module is `loramux trace`: it imports, generates, validates and describes traces.

It is thin: the work is in loramux_traces.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli.settings import settings

if TYPE_CHECKING:
    from loramux_traces.job import Trace

app = typer.Typer(
    name="trace",
    help="Import, generate, validate and describe traces of jobs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Out = Annotated[
    Path, typer.Option("--out", "-o", help="File to write: .csv, .csv.gz, .json, .jsonl or .yaml; - for stdout.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything that is drawn.")]
File = Annotated[Path, typer.Argument(help="Trace: .csv, .csv.gz, .json, .jsonl or .yaml; - for CSV on stdin.")]
Format = Annotated[str | None, typer.Option("--format", help="csv, json, jsonl or yaml, whatever the name says.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int], None]]:
    """Show a spinner with a count on stderr while something long runs.

    It shows nothing where stderr is no terminal.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with console.status(what) as status:
        yield lambda count: status.update(f"{what}: {count:,} rows")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _print_text(text: str) -> None:
    from rich.console import Console

    Console().print(text, markup=False, highlight=False)


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    for left, right in rows:
        table.add_row(Text(left), Text(right))
    Console().print(table)


def _written(trace: Trace, out: Path, force: bool) -> None:
    from loramux_traces.writer import write_trace

    write_trace(trace, out, force=force)
    _say(f"{out}: {len(trace):,} jobs, sha256 {trace.sha256[:16]}")
    _say(trace.provenance)


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="File(s) of the original trace.")],
    source: Annotated[
        str,
        typer.Option(help="philly-table, philly-json, helios, alibaba-pai2020, alibaba-gpu2023, acme or swf."),
    ],
    out: Out,
    seed: Seed = 0,
    limit: Annotated[int | None, typer.Option(help="Keep the first so many jobs by submission.")] = None,
    processors_per_gpu: Annotated[
        int | None,
        typer.Option(
            "--processors-per-gpu", help="swf counts processors: how many make one GPU (default: each is taken as one)."
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Turn a public cluster trace into jobs.

    Arrivals, durations and GPUs are real, LoRA columns are drawn with the seed.

    The originals are not shipped; the README says where each comes from and under which licence.
    """
    from loramux_traces.importers import get_source, import_trace
    from loramux_traces.writer import check_writable

    check_writable(out, force=force)
    with _progress(f"importing {get_source(source).title}"):
        trace = import_trace(source, list(paths), seed=seed, limit=limit, processors_per_gpu=processors_per_gpu)
    if get_source(source).counts_processors and processors_per_gpu is None:
        _say("note: the log counts processors, not GPUs; each was taken as one GPU (--processors-per-gpu N)")
    _written(trace, out, force)


def _kind_help(value: str | None) -> None:
    """Print the parameters of one kind, or of all, and end."""
    if value is None:
        return
    from loramux_traces.generators import KINDS, get_generator

    for kind in KINDS if value == "all" else (value,):
        generator = get_generator(kind)
        rows = [(name, f"{text} (default {default!r})") for name, default, text in generator.help()]
        _print_table(f"{kind}: {generator.summary}", rows)
    raise typer.Exit


@app.command()
def generate(
    kind: Annotated[str, typer.Option("--kind", help="philly-like, gavel, poisson, bursty, aspen-8 or hparam-search.")],
    out: Out,
    jobs: Annotated[int | None, typer.Option("--jobs", help="Number of jobs (default: the kind's own).")] = None,
    seed: Seed = 0,
    rho: Annotated[str | None, typer.Option("--rho", help="Load per server.")] = None,
    load: Annotated[str | None, typer.Option("--load", help="The same as --rho.")] = None,
    servers: Annotated[str | None, typer.Option("--servers", help="Devices that the load is meant for.")] = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", help="exp, deterministic, hyperexp, lognormal, uniform or pareto.")
    ] = None,
    mean_s: Annotated[str | None, typer.Option("--mean-s", help="Mean size in seconds.")] = None,
    scv: Annotated[str | None, typer.Option("--scv", help="Variance of the sizes over the squared mean.")] = None,
    mem_bytes: Annotated[
        str | None, typer.Option("--mem-bytes", help="Memory classes bytes:weight,... such as 6GiB:3,10GiB:2.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any parameter of the kind as name=value; repeatable.")
    ] = None,
    force: Force = False,
    parameters: Annotated[
        str | None,
        typer.Option(
            "--help-kind", help="Show the parameters of a kind (or all) and end.", callback=_kind_help, is_eager=True
        ),
    ] = None,
) -> None:
    """Make a modelled trace; the same arguments give the same file, byte for byte."""
    from loramux_profiles.checked import generate as make
    from loramux_traces.reader import folder_of
    from loramux_traces.writer import check_writable

    check_writable(out, force=force)
    common = {
        "rho": rho, "load": load, "servers": servers, "sizes": sizes,
        "mean_s": mean_s, "scv": scv, "mem_bytes": mem_bytes,
    }  # fmt: skip
    options = [f"{name}={value}" for name, value in common.items() if value is not None]
    given: dict[str, Any] = dict(settings([*options, *(set_ or [])], "--set"))
    with _progress(f"generating {kind}"):
        trace = make(kind, folder=folder_of(out), jobs=jobs, seed=seed, **given)
    _written(trace, out, force)


@app.command()
def validate(file: File, format: Format = None, as_json: Json = False) -> None:
    """Check every row as simulate does.

    Bad ones are listed with line, column, value and what is allowed (exit 2).
    """
    from loramux_profiles.checked import read_checked
    from loramux_traces.errors import InvalidInputError

    try:
        with _progress(f"reading {file}") as progress:
            trace = read_checked(file, format=format, progress=progress)
    except InvalidInputError as error:
        if not as_json:
            raise
        problems = [
            {"file": p.file, "line": p.line, "column": p.column, "value": p.value, "allowed": p.allowed}
            for p in error.problems
        ]
        _print_json({"schema_version": 1, "valid": False, "problems_total": error.total, "problems": problems})
        raise typer.Exit(InvalidInputError.exit_code) from None
    if as_json:
        facts = {"valid": True, "jobs": len(trace), "sha256": trace.sha256, "columns": list(trace.columns)}
        _print_json({"schema_version": 1, **facts, "provenance": trace.provenance, "problems_total": 0, "problems": []})
    else:
        rows = [("valid", "yes"), ("jobs", f"{len(trace):,}"), ("sha256", trace.sha256)]
        rows += [("columns", ", ".join(trace.columns)), ("provenance", trace.provenance or "-")]
        _print_table(str(file), rows)


@app.command()
def describe(
    file: Annotated[Path | None, typer.Argument(help="Trace; omitted: the shipped sample.")] = None,
    servers: Annotated[int, typer.Option("--servers", min=1, help="Devices that the load is counted over.")] = 1,
    format: Format = None,
    as_json: Json = False,
) -> None:
    """Facts of a trace: arrivals, durations, GPUs, methods, users, load."""
    from loramux_traces.data import sample_path
    from loramux_traces.describe import describe as facts_of
    from loramux_traces.describe import fact_rows
    from loramux_traces.reader import read_trace

    path = sample_path() if file is None else file
    with _progress(f"reading {path}") as progress:
        trace = read_trace(path, format=format, progress=progress)
    facts = facts_of(trace, servers=servers)
    if as_json:
        _print_json(facts)
    else:
        _print_table(trace.name, fact_rows(facts))
        if trace.provenance:
            _print_text(trace.provenance)
