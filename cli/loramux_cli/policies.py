"""`loramux policies` and `loramux doctor`: what there is to choose from, and what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from loramux_cli import options as o


def policies_command(
    policy_file: o.PolicyFile = None,
    as_json: o.AsJson = False,
) -> None:
    """List the policies: one line each, their parameters, and whether they preempt."""
    from loramux_cli.running import prints_aside
    from loramux_policies.registry import broken, find, load_file, names, parameters

    with prints_aside():
        for file in policy_file or ():
            load_file(file)
        listed = names()
    rows = []
    for name in listed:
        cls = find(name)
        line = (cls.__doc__ or "").strip().splitlines()
        given = {key: p.default for key, p in parameters(cls).items()}
        rows.append(
            {
                "name": name,
                "summary": line[0] if line else "",
                "parameters": given,
                "preempts": cls.preempts,
                "oracle": cls.oracle,
                "base_copies": cls.copies,
            }
        )
    for what, error in broken().items():
        typer.echo(f"loramux: {what} could not be loaded: {error}", err=True)
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text({"schema_version": 1, "policies": rows, "broken": broken()}, indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("policy", "preempts", "parameters", "what it does"):
        table.add_column(column, overflow="fold", no_wrap=column == "policy")
    for row in rows:
        shown = ", ".join(f"{key}={value}" for key, value in dict(row["parameters"]).items())  # type: ignore[call-overload]
        table.add_row(
            Text(str(row["name"])), "yes" if row["preempts"] else "no", Text(shown), Text(str(row["summary"]))
        )
    Console().print(table)


def doctor_command(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Say what is installed and what can run here."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from loramux_profiles.devices import device_names
    from loramux_traces.data import sample_path
    from loramux_traces.filesafe import json_text

    found: dict[str, str | None] = {}
    for package in ("loramux", "numpy", "scipy", "pandas", "simpy", "matplotlib", "torch", "transformers", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    facts = {
        "schema_version": 1,
        "python": platform.python_version(),
        "packages": found,
        "device_profiles": device_names(),
        "sample": str(sample_path()),
        "simulate": True,
        "train": False,
    }
    if as_json:
        typer.echo(json_text(facts, indent=2))
        return
    typer.echo(f"python {facts['python']}")
    for package, number in found.items():
        typer.echo(f"{package:12} {number or 'not installed'}")
    typer.echo(f"device profiles: {', '.join(device_names())}")
    typer.echo("simulate, sweep, compare, plot, trace: ready")
    typer.echo("train, run: not in this version (simulation only)")
