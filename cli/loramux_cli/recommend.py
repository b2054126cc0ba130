"""This module is `loramux recommend`.

It advises micro-batch, recompute and how many jobs for a device, by the cost model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_cli.estimate import EXIT_NEVER_FITS, DtypeOption, SeqLen, SeqLenP95, checked_dtype, gib, lengths

if TYPE_CHECKING:
    from loramux_profiles.devices import DeviceProfile
    from loramux_profiles.recommendation import Recommendation
    from loramux_traces.job import JobSpec

METHODS = ("lora", "mixlora", "mola", "loramoe", "dynmole")
MOST_SPECS = 256
TARGETS = ("all-linear", "attention", "mlp", "qv")


def recommend_command(
    jobs: Annotated[
        str | None,
        typer.Argument(
            help="Several jobs: jobs.yaml as for train, or a trace. Omitted: one job, described by options."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="A device that ships (a100-80g, ...), a profile, or a measured record; or as for train: cpu, cuda, "
            "cuda:1, auto."
        ),
    ] = "auto",
    device_profile: o.ProfileName = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a name, or the path of a config.json. Default: the file's.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"Of one job, as all down to --batch-size: {', '.join(METHODS)}. Default: lora.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, max=4096, help="Default: 16.")] = None,
    experts: Annotated[int | None, typer.Option(min=1, max=1024, help="Default: as the method's paper.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, max=1024, help="Default: 2.")] = None,
    targets: Annotated[
        str | None, typer.Option(help=f"Adapted linears: {', '.join(TARGETS)}. Default: all-linear.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Rows per optimizer step. Default: 16.")
    ] = None,
    seq_len: SeqLen = None,
    seq_len_p95: SeqLenP95 = None,
    dtype: DtypeOption = None,
    allow_other: o.AllowOther = False,
    memory: o.JobMemory = None,
    max_resident: o.Residents = None,
    recompute: o.Recompute = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Find the largest micro-batch, and whether to recompute.

    Also say how many jobs share the device, and where fusing stops paying.
    """
    from loramux_profiles.recommend import recommend
    from loramux_traces.errors import UsageError

    lengths(seq_len, seq_len_p95)
    profile = _profile(device, device_profile, memory, allow_other=allow_other)
    folder = ""
    notes: tuple[str, ...] = ()
    described = {
        "method": method,
        "rank": rank,
        "num_experts": experts,
        "top_k": top_k,
        "target_modules": targets,
        "batch_size": batch_size,
    }
    given = {name: value for name, value in described.items() if value is not None}
    if jobs is None:
        specs = [
            _one_job(
                profile,
                model,
                given,
                seq_len=seq_len if seq_len is not None else 512.0,
                seq_len_p95=seq_len_p95,
                dtype=checked_dtype(dtype),
            )
        ]
    else:
        from loramux_runtime.profiler.subjects import read_subjects

        if given:
            raise UsageError(f"{', '.join(map(_option, given))}: {jobs} says that of its jobs: must be left out")
        found = read_subjects(
            jobs,
            model=model,
            dtype=checked_dtype(dtype),
            seq_len=seq_len,
            seq_len_p95=seq_len_p95,
            tell=lambda text: None if quiet else typer.echo(text, err=True),
        )
        specs, folder, notes = list(found.specs), found.folder, found.notes
        notes += tuple(f"{spec.job_id}: reckoned without {what}" for spec in specs for what in found.unsaid(spec))
        if len(specs) > MOST_SPECS:
            raise UsageError(f"{jobs}: {len(specs):,} jobs; at most {MOST_SPECS} are looked at together")
    result = recommend(
        profile,
        specs,
        folder=folder,
        max_jobs=max_resident,
        recompute=recompute,
    )
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text({"schema_version": 1, **result.to_dict()}, indent=2))
    else:
        _tables(result)
    if not quiet:
        for note in (*notes, *result.notes):
            typer.echo(f"note: {note}", err=True)
    if result.never:
        what = "not one row fits, not even with recompute"
        typer.echo(f"loramux: can never run on {result.device}: {', '.join(result.never)} ({what})", err=True)
        raise typer.Exit(EXIT_NEVER_FITS)


def _profile(device: str, name: str | None, memory: str | None, *, allow_other: bool) -> DeviceProfile:
    """Return the profile that is named, or that of the device which train would take."""
    from loramux_cli.device_choice import choose_profile, memory_bytes, need_torch
    from loramux_profiles.devices import load_device, with_memory

    if name is None and device != "auto" and not device.startswith("cuda"):
        found = load_device(device, allow_other=allow_other)
        return found if memory is None else with_memory(found, memory_bytes(memory), "--memory")
    need_torch()
    from loramux_runtime.fused.torch_devices import choose_device

    chosen: DeviceProfile = choose_profile(choose_device(device), name, memory, allow_other=allow_other)
    return chosen


_OPTIONS = {"num_experts": "experts", "target_modules": "targets", "base_model": "model"}
"""Options whose names are not those of a job's fields."""


def _option(field: str) -> str:
    return "--" + _OPTIONS.get(field, field).replace("_", "-")


def _one_job(device: DeviceProfile, model: str | None, given: dict[str, Any], **fields: Any) -> JobSpec:
    import dataclasses

    from pydantic import ValidationError

    from loramux_runtime.fused.adapters.configs import CONFIGS
    from loramux_runtime.profiler.subjects import find_base
    from loramux_traces.errors import UsageError
    from loramux_traces.file_model import faults
    from loramux_traces.job import JobSpec

    fitted = device.fitted
    name = model or (fitted.name if fitted is not None else None)
    if name is None:
        raise UsageError("give --model NAME (loramux recommend --model llama-7b --device a100-80g), or a jobs file")
    for field, allowed in (("method", METHODS), ("target_modules", TARGETS)):
        if given.get(field, allowed[0]) not in allowed:
            raise UsageError(f"{_option(field)} {str(given[field])[:40]!r}: {', '.join(allowed)}")
    method = given.get("method", "lora")
    known = {field.name.removeprefix("keep_") for field in dataclasses.fields(CONFIGS[method])}
    for field in ("num_experts", "top_k"):
        if field in given and field not in known:
            raise UsageError(f"{_option(field)}: {method} has no field {field}: must be left out")
    fields |= {"method": method, "top_k": 2 if "top_k" in known else 1, "batch_size": 16, **given}
    if fields["dtype"] is None:
        fields["dtype"] = fitted.dtype if fitted is not None else "bf16"
    try:
        return JobSpec(job_id="job", submit_s=0, base_model=find_base(name).label, total_steps=1, **fields)
    except ValidationError as error:
        first = faults(error, fields)[0]
        raise UsageError(str(dataclasses.replace(first, place=(_option(first.field),)))) from error


def _tables(r: Recommendation) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.width = max(console.width, 80)

    def table(*heads: str) -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for head in heads:
            name = head in ("alone", "")
            made.add_column(head, justify="left" if name else "right", no_wrap=not name, overflow="fold")
        return made

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    say(f"{', '.join(r.models)} on {r.device}: {gib(r.weight_bytes)} of weights, {gib(r.capacity_bytes)} to use")
    say(f"(memory {r.memory_origin}, tokens/s {r.time_origin})\n")
    alone = table("alone", "recom-\npute", "largest\nmicro-batch", "own bytes", "needs\nat most", "tokens/s")
    for one in r.alone:
        fits = f"{one.largest} rows" if one.largest else "none fits"
        speed = f"{one.tokens_per_s:,.0f}" if one.largest else "-"
        cells = ("yes" if one.recompute else "no", fits, gib(one.own_bytes), gib(one.need_bytes), speed)
        alone.add_row(Text(one.job_id), *cells)
    console.print(alone)
    if not r.frontier:
        say(f"\n{r.advice}")
        return
    heads = (
        "jobs to-\ngether",
        "micro-\nbatch",
        "recom-\npute",
        "\nexpected",
        "\nat most",
        "\nheadroom",
        "tokens\n/s",
        "",
    )
    together = table(*heads)
    for row in r.frontier:
        sizes = sorted(set(row.micro_batches))
        size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        memory = (gib(row.expected_bytes), gib(row.upper_bytes), gib(row.headroom_bytes))
        marks = " ".join((["<- advised"] if row is r.best else []) + ([] if row.trusted else ["beyond measured"]))
        mode = "yes" if row.recompute else "no"
        together.add_row(f"{row.jobs}", size, mode, *memory, f"{row.tokens_per_s:,.0f}", marks)
    say("")
    console.print(together)
    most = [
        f"{'more than ' if r.capped[mode] else ''}{r.most[mode]} {'with' if mode else 'without'} recompute"
        for mode in (False, True)
        if any(one.recompute is mode for one in r.alone)
    ]
    say(f"\nmost jobs that share the device: {', '.join(most)}; recompute: {r.recompute}")
    say(r.advice)
    say("What the columns mean: loramux recommend -h")
