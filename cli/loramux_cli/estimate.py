"""This module is `loramux estimate`.

It estimates the memory of a fused step on a device that need not be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_traces.limits import MAX_TOKENS

if TYPE_CHECKING:
    from loramux_runtime.profiler.estimate import Estimate, Figure

EXIT_NEVER_FITS = 4
DTYPES = ("bf16", "fp16", "fp32")

Device = Annotated[str, typer.Option(help="A device that ships (a100-80g, ...), a profile, or a measured record.")]
Model = Annotated[
    str | None, typer.Option(help="Base model instead of the file's: a name, or the path of a config.json.")
]
DtypeOption = Annotated[str | None, typer.Option(help="Type of the weights instead of the file's: bf16, fp16, fp32.")]
SeqLen = Annotated[
    float | None, typer.Option(min=1, max=MAX_TOKENS, help="Mean tokens per row, instead of what the file or data say.")
]
SeqLenP95 = Annotated[
    float | None, typer.Option(min=1, max=MAX_TOKENS, help="Tokens that 95% of the rows do not exceed.")
]


def estimate_command(
    jobs: Annotated[str, typer.Argument(help="jobs.yaml as loramux train reads it, or a trace (.csv, .json, .jsonl).")],
    device: Device,
    model: Model = None,
    recompute: o.Recompute = False,
    dtype: DtypeOption = None,
    seq_len: SeqLen = None,
    seq_len_p95: SeqLenP95 = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="By the allocation plan alone: milliseconds, no torch.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for finished fake runs. Default: loramux/estimates in XDG_CACHE_HOME.")
    ] = None,
    allow_other: o.AllowOther = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Predict the memory of the jobs' fused step.

    The prediction is from a run of the real step on fake tensors, or from the plan.
    """
    from loramux_profiles.devices import load_device
    from loramux_runtime.profiler.estimate import estimate
    from loramux_runtime.profiler.subjects import read_subjects

    def tell(text: str) -> None:
        if not quiet:
            typer.echo(text, err=True)

    lengths(seq_len, seq_len_p95)
    profile = load_device(device, allow_other=allow_other)
    subjects = read_subjects(
        jobs,
        model=model,
        dtype=checked_dtype(dtype),
        recompute=recompute,
        seq_len=seq_len,
        seq_len_p95=seq_len_p95,
        tell=tell,
    )
    found = estimate(profile, subjects, cache=cache, quick=quick, tell=tell)
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text({"schema_version": 1, **found.to_dict()}, indent=2))
    else:
        _table(found)
    for note in found.notes:
        tell(f"note: {note}")
    if found.never:
        what = "not one row fits, not even with recompute"
        typer.echo(f"loramux: can never run on {found.device}: {', '.join(found.never)} ({what})", err=True)
        raise typer.Exit(EXIT_NEVER_FITS)


def lengths(mean: float | None, p95: float | None) -> None:
    """Raise UsageError where --seq-len and --seq-len-p95 do not go together."""
    from loramux_traces.errors import UsageError

    if p95 is not None and (mean is None or p95 < mean):
        raise UsageError("--seq-len-p95 needs --seq-len, and must be at least that")


def checked_dtype(name: str | None) -> Any:
    """Return --dtype; UsageError where there is no such type."""
    from loramux_traces.errors import UsageError

    if name is not None and name not in DTYPES:
        raise UsageError(f"--dtype {name[:20]!r}: {', '.join(DTYPES)}")
    return name


def gib(size: float) -> str:
    """Return a number of bytes as text for people."""
    return f"{size / 2**30:,.2f} GiB" if abs(size) >= 2**28 else f"{size / 2**20:,.1f} MiB"


def _table(e: Estimate) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.width = max(console.width, 80)
    mode = "with recompute" if e.recompute else "without recompute"

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    say(f"ESTIMATED, not measured: {e.model} in {e.dtype} on {e.device}, {mode}, by {e.method}")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    heads = ("job", "method", "rank", "adapter", "gra-\ndients", "moments", "rows", "tokens\n(mean)", "alone\nexpected")
    for head in (*heads, "\nat most"):
        left = head in ("job", "method")
        table.add_column(head, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for job in e.jobs:
        sizes = (gib(size) for size in (job.adapter_bytes, job.gradient_bytes, job.moment_bytes))
        upper = gib(job.alone_upper_bytes) + ("" if job.alone_fits else "\ntoo large")
        alone = (gib(job.alone_expected_bytes), upper)
        counts = (str(job.micro_batch), f"{job.tokens:,}\n({job.mean_tokens:,})")
        table.add_row(Text(job.job_id), job.method, str(job.rank), *sizes, *counts, *alone)
    console.print(table)
    say(f"tokens: of a micro-batch at the .999 quantile of its lengths ({e.lengths}); in brackets: of the mean one\n")
    table = Table(box=None, pad_edge=False)
    for head in ("all jobs in one step", "at the quantile", "at the mean"):
        table.add_column(head, justify="left" if head.startswith("all") else "right", no_wrap=True)
    for name, key in (
        ("tokens", "tokens"),
        ("weights", "weight_bytes"),
        ("context", "context_bytes"),
        ("adapters, gradients, moments", "state_bytes"),
        ("the step's own (dynamic)", "dynamic_bytes"),
        ("expected in all", "expected_bytes"),
        (f"upper bound (+{e.margin:.1%} of dynamic, {e.memory_origin})", "upper_bytes"),
        ("dynamic by the allocation plan", "plan_dynamic_bytes"),
    ):
        cells = [getattr(figure, key) for figure in (e.admitted, e.mean)]
        table.add_row(name, *(f"{cell:,}" if key == "tokens" else gib(cell) for cell in cells))
    table.add_row("plan's difference to the fake run", *(_difference(figure) for figure in (e.admitted, e.mean)))
    table.add_row("plan's time", *(f"{1e3 * figure.plan_wall_s:.1f} ms" for figure in (e.admitted, e.mean)))
    console.print(table)
    if e.missing_bytes:
        verdict = f"DOES NOT FIT, {gib(e.missing_bytes)} ({e.missing_bytes:,} bytes) are missing"
    else:
        verdict = f"fits, {gib(e.capacity_bytes - e.admitted.upper_bytes)} to spare"
    say(f"\n{e.device} has {gib(e.capacity_bytes)}: {verdict} (estimated)")
    say(f"a process per job would take {gib(e.separate_bytes)}: fusing saves {gib(e.saved_bytes)} (estimated)")


def _difference(figure: Figure) -> str:
    return "not run" if figure.plan_difference is None else f"{figure.plan_difference:+.3%}"
