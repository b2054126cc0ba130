"""This module reads the parameters of a generator, as `--set` and `--generate` are given them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: What names a trace and its making, and is no parameter of a kind: where it is said instead.
_ELSEWHERE: Final = {
    "jobs": "--jobs says how many",
    "seed": "seeds are options of the command",
    "kind": "the kind is named once",
    "name": "the name comes from the kind",
    "check": "there is no such parameter",
    "folder": "there is no such parameter",
}


def settings(pairs: Iterable[str], option: str, *, allowed: tuple[str, ...] = ()) -> dict[str, str]:
    """Return `name=value` pairs as a mapping.

    Raises UsageError for what is no pair, for a name that is given twice, and for one that is no
    parameter of any kind (`allowed` are those that this option takes all the same).
    """
    from loramux_traces.errors import UsageError

    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        name = name.replace("-", "_")
        if not equals or not name:
            raise UsageError(f"{option} {pair[:80]!r}: expected name=value")
        if name in values:
            raise UsageError(f"{option}: {name} is given twice, as {values[name][:80]!r} and as {value[:80]!r}")
        if name in _ELSEWHERE and name not in allowed:
            raise UsageError(f"{option} {pair[:80]!r}: {name} is no parameter ({_ELSEWHERE[name]})")
        values[name] = value
    return values
