"""This module is `loramux fit`.

It fits memory and time models to measured profiles, and says how wrong they are.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux_cli import options as o

if TYPE_CHECKING:
    from loramux_profiles.records import ProfileRecord
    from loramux_profiles.step_point import StepPoint

LABELS = {
    "ours": "ours",
    "mlora": "mLoRA's form, b0 + b1 B L + b2 B L^2",
    "tokens": "tokens only, b0 + b1 T",
    "linear": "linear in all features",
    "prior": "unfitted prior",
}


def fit_command(
    files: Annotated[list[Path], typer.Argument(help="Profiles (loramux profile measures them); the fit is put in.")],
    plots: Annotated[Path | None, typer.Option(help="Folder to draw residuals into.")] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Fit memory and step time to profiles; errors are of steps that the fit did not see."""
    from loramux_profiles.fit import summary
    from loramux_profiles.records import read_record, write_record
    from loramux_traces.errors import UsageError

    # all records are read before one is written
    records = [(file, read_record(file)) for file in files]
    done = []
    for file, record in records:
        new = fitted(record)
        if new is None:
            raise UsageError(f"{file}: too few measured steps for a fit ({len(record.points)})")
        write_record(file, new)
        done.append(new)
        if plots is not None:
            _draw(plots, file, new, quiet=quiet)
    if as_json:
        from loramux_traces.filesafe import json_text

        entries = [{"file": str(file), **summary(r)} for (file, _), r in zip(records, done, strict=True)]
        typer.echo(json_text({"schema_version": 1, "profiles": entries}, indent=2))
        return
    for (file, _), record in zip(records, done, strict=True):
        typer.echo(f"{file}: {record.model.name} in {record.model.dtype} on {record.device.name}")
        fit_table(record)


def fitted(record: ProfileRecord) -> ProfileRecord | None:
    """Return the record with a fit of today; None where it has too few points."""
    from loramux_profiles.devices import device_names, load_device
    from loramux_profiles.fit import FEWEST, fit_record

    if max(len(record.timed), len(record.peaks)) < FEWEST:
        return None
    name = record.device.name
    device = load_device(name) if name in device_names() else None
    section = fit_record(record, walk_of(record), device, date=datetime.date.today().isoformat())
    return record.model_copy(update={"fit": section})


def walk_of(record: ProfileRecord) -> Callable[[StepPoint], float] | None:
    """Return the structural memory walk for a record's model."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("loramux_profiles.step_plan") is None:
        return None
    plan_bytes = import_module("loramux_profiles.step_plan").plan_bytes
    shape, dtype, exact = record.model.shape, record.model.dtype, record.exact
    return lambda point: float(plan_bytes(shape, point, dtype=dtype, exact=exact))


def fit_table(record: ProfileRecord) -> None:
    """Print the errors of both models beside their rivals'."""
    from rich.console import Console
    from rich.table import Table

    from loramux_profiles.time_features import FEATURES

    fit = record.fit
    assert fit is not None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("", "points", "mean", "median", "worst\nunder", "worst\nover"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=bool(name), overflow="fold")
    for title, part in (("memory", fit.memory), ("step time", fit.time)):
        if part is None:
            continue
        for key, figures in {"ours": part.cross_validated, **part.rivals}.items():
            cells = [figures.mape, figures.median, figures.worst_under, figures.worst_over]
            table.add_row(f"{title}, {LABELS.get(key, key)}", str(figures.n), *(f"{cell:.2%}" for cell in cells))
    console = Console()
    console.width = max(console.width, 80)
    console.print(table)
    if fit.memory is not None:
        m = fit.memory
        console.print(
            f"memory: {m.scale:.4f} x walk + {m.offset_bytes:,.0f} B; {1 - m.alpha:.0%} bound {m.margin:.2%} above it "
            f"({m.violations} of {m.cross_validated.n} exceed it); trusted up to {m.trusted_tokens:,.0f} tokens"
        )
    if fit.time is not None:
        if fit.time.cross_validated.n < len(FEATURES):
            console.print(
                f"step time: {fit.time.cross_validated.n} steps are fewer than the model's {len(FEATURES)} features: "
                "its errors on held-out steps hold, its single coefficients mean little"
            )
        console.print(f"step time: repeats of one step are {fit.time.repeats:.1%} from their median in the mean")
    console.print(f"Errors are of held-out steps ({fit.folds} folds).", style="dim")


def _draw(folder: Path, file: Path, record: ProfileRecord, *, quiet: bool) -> None:
    from loramux_analysis.residuals import draw_residuals

    fit = record.fit
    assert fit is not None
    series: dict[str, tuple[list[float], list[float], str]] = {}
    if fit.time is not None:
        medians = [record.even_s(p.time) for p in record.timed if p.time is not None]
        series["time"] = (medians, list(fit.time.residuals), "measured seconds of a step")
    if fit.memory is not None:
        peaks = [float(p.memory.dynamic or 0) for p in record.peaks]
        series["memory"] = (peaks, list(fit.memory.residuals), "measured dynamic bytes of a step")
    title = f"{record.model.name}, {record.device.name}"
    for path in draw_residuals(folder, file.stem, title, series):
        if not quiet:
            typer.echo(f"drew {path}", err=True)
