"""This module makes a record from the journal of a run elsewhere.

The run is one of the GPU suite, or a `loramux profile` that was broken off.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loramux_profiles.records import ProfileRecord

HEAD = ("device", "model", "exact", "clock", "versions", "commit", "seed")
"""What a record says too of a journal's identity."""
REPEATS = 5
"""Repeats of a journal that does not say how many: what `loramux profile` takes."""


def record_from_journal(file: Path, device_name: str | None) -> ProfileRecord:
    """Make the record of a journal, without a fit.

    UsageError or InvalidInputError where the journal is damaged, holds no step, or is of a card
    that has no name.
    """
    from loramux_profiles.datafiles import problem
    from loramux_profiles.records import ProfileRecord
    from loramux_runtime.profiler.journal import read_journal, rows_of
    from loramux_runtime.profiler.transfers import fit_transfers
    from loramux_traces.errors import InvalidInputError, UsageError
    from loramux_traces.file_model import validate

    content = read_journal(file)
    identity = content.identity
    if identity is None or not content.found:
        raise UsageError(f"{file}: holds no measured step")
    missing = [key for key in HEAD if key not in identity]
    if missing or not isinstance(identity["device"], dict):
        raise InvalidInputError([problem(file, (missing or ["device"])[0], None, "not the journal of a profiling run")])
    repeats = identity.get("repeats", REPEATS)
    document: dict[str, Any] = {"schema_version": 1, "kind": "profile", **{key: identity[key] for key in HEAD}}
    document["device"] = {**identity["device"], "name": device_name or _named(identity["device"])}
    written = datetime.date.fromtimestamp(file.stat().st_mtime).isoformat()
    document["date"] = content.notes.get("date", written)
    try:
        document["points"] = rows_of(content.found, int(repeats))
        if "transfers" in content.notes:
            document["transfers"] = fit_transfers(content.notes["transfers"])
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInputError([problem(file, "", None, f"a damaged journal ({str(error)[:80]})")]) from error
    return validate(ProfileRecord, file, document)


def profile_name(card: str) -> str:
    """Return the device profile that ships for a card; UsageError where none does."""
    from loramux_cli.device_choice import shipped_for
    from loramux_traces.errors import UsageError

    name = shipped_for(card)
    if name is None:
        raise UsageError(f"no device profile ships for {card!r}: name one with --device-name")
    return name


def _named(device: dict[str, Any]) -> str:
    if device.get("name"):
        return str(device["name"])
    return "cpu" if device.get("kind") == "cpu" else profile_name(str(device.get("description"))[:80])
