"""This module is `loramux profile`.

It measures a base model's fused steps on a device, or checks a profile that somebody measured.
"""

from __future__ import annotations

import datetime
import gc
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o

if TYPE_CHECKING:
    from loramux_profiles.records import ProfileRecord
    from loramux_runtime.profiler.session import Session, SessionReport

CPU_MEMORY = 0.5
"""Share of the machine's memory that a step on its CPU may take."""
SIZES = {"cpu": (300, 5_000), "cuda": (2_048, 16_384)}
"""Longest row and most tokens of a measured step; models are trusted up to 1.25 times that."""


def profile_command(
    shape: Annotated[
        str | None,
        typer.Option(help="A model that ships (llama-tiny, llama-7b, ...) or a config.json; random weights."),
    ] = None,
    path: Annotated[Path | None, typer.Option(help="A Hugging Face model folder to measure instead.")] = None,
    device: o.TorchDevice = "auto",
    device_name: Annotated[
        str | None, typer.Option(help="Name of the device's profile (cpu, h100-80g, ...). Default: by the card.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16. Default: fp32 on cpu, bf16 on cuda.")] = None,
    budget: Annotated[
        str, typer.Option(help="Most time on the wall, loading and fitting included, as in 90s, 10m, 1h.")
    ] = "10m",
    goal: Annotated[float, typer.Option(help="Cross-validated error of step times that is good enough.")] = 0.04,
    points: Annotated[int | None, typer.Option(min=1, max=20_000, help="Most steps to measure.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Most memory of a step on a CPU, as in 6GiB. Default: half of the machine's.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest row measured, tokens.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=16, help="Largest step measured, tokens.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: 1 for a small model.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the steps that are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File of the profile. Default: <model>.json in this folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was broken off.")] = False,
    check: Annotated[
        Path | None, typer.Option(help="Validate a profile that was measured elsewhere, and say what it holds.")
    ] = None,
    from_journal: Annotated[
        Path | None, typer.Option(help="Make the profile of the journal that make gpu or a broken-off run left.")
    ] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Measure memory and time of fused steps.

    So predictions are of this device and not assumed.
    """
    began_s = time.monotonic()
    if check is not None:
        _check(check, as_json=as_json)
        return
    if from_journal is not None:
        _from_journal(from_journal, device_name, out, as_json=as_json, force=force)
        return
    from loramux_traces.errors import StateError, UsageError

    if (shape is None) == (path is None):
        raise UsageError("loramux profile needs --shape NAME or --path FOLDER (or --check or --from-journal FILE)")
    budget_s = duration_s(budget)
    target = out or Path(f"{Path(shape or str(path)).name.removesuffix('.json')}.json")
    from loramux_cli.device_choice import hush_weight_bars, need_torch

    need_torch()
    hush_weight_bars(quiet=quiet)
    from loramux_runtime.profiler.journal import journal_path

    if target.exists() and not force and not (resume and journal_path(target).exists()):
        raise StateError(f"{target}: there is a whole profile already; --force replaces it")
    from loramux_profiles.shape_catalog import load_shape
    from loramux_runtime.fused.torch_devices import choose_device, set_threads

    where = choose_device(device)
    model_shape = load_shape(shape or str(path))
    set_threads(threads, model_shape.hidden)
    kind = dtype or ("fp32" if where.type == "cpu" else "bf16")
    if kind not in ("fp32", "bf16"):
        raise UsageError(f"--dtype {kind[:20]!r}: fp32 or bf16")
    if not quiet:
        typer.echo(f"building {model_shape.name} in {kind} on {where}", err=True)
    model = _model(shape, path, kind, where)
    # times of one core do not depend on who else is on the machine
    if threads is None and where.type == "cpu":
        set_threads(1, model_shape.hidden)
    # garbage is collected before each peak: looking through all that is imported, too, took a fifth
    # of a small profile
    gc.freeze()
    length, tokens = SIZES[where.type]
    head = _head(model, model_shape, kind, where, device_name or _device_name(where), seed)
    with _session(
        head,
        model,
        model_shape,
        target,
        resume=resume,
        force=force,
        length=max_length or length,
        tokens=max_tokens or tokens,
        limit=_limit(memory, where),
        goal=goal,
        most=points,
    ) as session:
        try:
            with _progress(budget_s, quiet=quiet) as session.tell:
                reason = session.run(budget_s, began_s)
        except BaseException:
            # an interrupt or a fault: what was measured is written, its journal stays for --resume
            _write(target, _record(head, session))
            raise
        record = _write(target, _record(head, session, transfers=True))
        session.journal.path.unlink(missing_ok=True)
    if record is None:
        raise StateError(f"not one step could be measured within {budget}")
    if not quiet:
        took_s = time.monotonic() - began_s
        left = f", {budget_s - took_s:,.0f} s of it left" if reason == "budget" else ""
        if reason == "budget" and session.next_s > 0.0:
            left += f": the next step was expected to take {session.next_s:,.1f} s"
        typer.echo(f"stopped: {reason}{left}; {target} holds {len(record.points)} steps", err=True)
    _print(record, as_json=as_json)


def duration_s(text: str) -> float:
    """Return the seconds of 90s, 10m, 1.5h or a bare number; UsageError for anything else."""
    from loramux_traces.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|)", text.strip())
    seconds = float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= 7 * 86_400:
        raise UsageError(f"--budget {text[:40]!r}: a time above 0, as in 90s, 10m or 1h")
    return seconds


def _check(file: Path, *, as_json: bool) -> None:
    from loramux_profiles.records import read_record

    _print(read_record(file), as_json=as_json)


def _from_journal(file: Path, device_name: str | None, out: Path | None, *, as_json: bool, force: bool) -> None:
    from loramux_cli.device_choice import need_torch
    from loramux_traces.errors import StateError

    need_torch()
    from loramux_cli.from_journal import record_from_journal

    record = record_from_journal(file, device_name)
    target = out or Path(f"{record.model.name}.json")
    if target.exists() and not force:
        raise StateError(f"{target}: there is a whole profile already; --force replaces it")
    _print(_write(target, record) or record, as_json=as_json)


def _print(record: ProfileRecord, *, as_json: bool) -> None:
    from loramux_cli.fitting import fit_table
    from loramux_profiles.fit import summary

    facts = summary(record)
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text({"schema_version": 1, "profile": facts}, indent=2))
        return
    typer.echo(
        f"{facts['model']} in {facts['dtype']} on {facts['device']} ({record.device.description}), "
        f"measured {facts['date']} at {facts['commit'] or 'an unknown commit'}:\n"
        f"{facts['points']} steps, {facts['timed']} timed, {facts['censored']} out of memory"
    )
    if record.fit is None:
        typer.echo("no fit: run loramux fit on it")
    else:
        fit_table(record)


def _device_name(where: Any) -> str:
    from loramux_cli.from_journal import profile_name
    from loramux_runtime.fused.torch_devices import card_name

    return "cpu" if where.type == "cpu" else profile_name(card_name(where))


def _limit(memory: str | None, where: Any) -> float | None:
    from loramux_cli.device_choice import memory_bytes
    from loramux_runtime.profiler.identity import physical_bytes

    if where.type != "cpu":
        return None
    return float(memory_bytes(memory)) if memory is not None else CPU_MEMORY * physical_bytes()


def _model(shape: str | None, path: Path | None, dtype: Any, where: Any) -> Any:
    from loramux_runtime.fused.base_model import build_base, load_base, shape_config
    from loramux_runtime.fused.model import FusedModel

    if path is not None:
        return FusedModel(load_base(path, dtype=dtype, device=where))
    assert shape is not None
    return FusedModel(build_base(shape_config(shape), name=shape, dtype=dtype, device=where))


def _head(model: Any, shape: Any, dtype: str, where: Any, name: str, seed: int) -> dict[str, Any]:
    """Return a record without its points."""
    from loramux_profiles.records import Model
    from loramux_runtime.profiler.identity import describe_run

    # a shape that no record may hold is refused before anything is measured
    Model.of(shape, dtype)
    return describe_run(shape, dtype, where, name, exact=model.exact, seed=seed)


@contextmanager
def _session(
    head: dict[str, Any],
    model: Any,
    shape: Any,
    target: Path,
    *,
    resume: bool,
    force: bool,
    length: int,
    tokens: int,
    limit: float | None,
    goal: float,
    most: int | None,
) -> Iterator[Session]:
    from loramux_runtime.profiler.grid import Limits
    from loramux_runtime.profiler.journal import Journal, journal_path
    from loramux_runtime.profiler.session import Session

    longest = min(length, model.base.longest_position or length)
    limits = Limits(length=longest, tokens=tokens, layers=shape.layers)
    identity = {key: head[key] for key in ("device", "model", "exact", "clock", "versions", "commit", "seed")}
    identity["limits"] = [limits.jobs, limits.rows, limits.length, limits.tokens]
    with Journal(journal_path(target), identity, resume=resume, force=force) as journal:
        yield Session(
            model=model,
            shape=shape,
            journal=journal,
            seed=head["seed"],
            limits=limits,
            limit_bytes=limit,
            goal=goal,
            most=most,
        )


def _write(target: Path, record: ProfileRecord | None) -> ProfileRecord | None:
    """Write a record, and write it again with a fit where there is enough for one."""
    from loramux_cli.fitting import fitted
    from loramux_profiles.records import write_record

    if record is None:
        return None
    write_record(target, record)
    with_fit = fitted(record)
    if with_fit is not None:
        write_record(target, with_fit)
    return with_fit or record


def _record(head: dict[str, Any], session: Session, *, transfers: bool = False) -> ProfileRecord | None:
    """Return the record of what was measured; None where that is nothing."""
    from loramux_profiles.records import ProfileRecord
    from loramux_runtime.profiler.journal import rows_of
    from loramux_runtime.profiler.transfers import measure_transfers

    rows = rows_of(session.found, session.repeats)
    if not rows:
        return None
    document = {**head, "date": datetime.date.today().isoformat(), "points": rows}
    if transfers:
        document["transfers"] = measure_transfers(session.model)
    return ProfileRecord.model_validate(document)


@contextmanager
def _progress(budget_s: float, *, quiet: bool) -> Iterator[Callable[[SessionReport], None]]:
    if quiet or not sys.stderr.isatty():
        yield _lines(quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=budget_s, text="")

        def tell(progress: SessionReport) -> None:
            bar.update(task, completed=min(budget_s, progress.seconds), text=_text(progress))

        yield tell


def _lines(quiet: bool) -> Callable[[SessionReport], None]:
    """Return a listener that prints a line a minute, where there is no terminal."""
    last = -math.inf

    def tell(progress: SessionReport) -> None:
        nonlocal last
        if not quiet and progress.seconds - last >= 60:
            last = progress.seconds
            typer.echo(f"{progress.seconds:.0f} s: {_text(progress)}", err=True)

    return tell


def _text(progress: SessionReport) -> str:
    error = "" if progress.error is None else f", time error {progress.error:.1%}"
    censored = f", {progress.censored} out of memory" if progress.censored else ""
    return f"{progress.timed} of {progress.points} steps timed{censored}{error}"
