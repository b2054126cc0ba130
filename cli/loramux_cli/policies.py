"""This module is `loramux policies`: it lists what there is to choose from."""

from __future__ import annotations

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
        values = dict(row["parameters"])  # type: ignore[call-overload]  # a row of JSON values
        shown = ", ".join(f"{key}={'its own' if value is None else value}" for key, value in values.items())
        table.add_row(
            Text(str(row["name"])), "yes" if row["preempts"] else "no", Text(shown), Text(str(row["summary"]))
        )
    Console().print(table)
