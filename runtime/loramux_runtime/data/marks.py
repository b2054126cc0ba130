"""This module tells by its name and value whether a key says what of a row is learned.

Trainers have many names for it. Names are looked at word by word: a `loss_mask` is a mark, a
`constraint_count` has no `train` in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from loramux_runtime.data.values import unpacked

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: Words by which trainers say whether a turn is learned, also written as one (`lossmask`).
_LEARNS: Final = re.compile(
    "(?:weights?|train(?:ed|able|ing)?|loss(?:es)?|(?:un)?mask(?:s|ed|ing)?|learn(?:ed|able|ing)?|ignored?|supervised?)+"
)
#: Words that stand beside mask or weight in the name of a column for the whole row.
_PARTS: Final = (
    "masks?|weights?|loss(?:es)?|samples?|examples?|rows?|tokens?|labels?|targets?|completions?|answers?|responses?"
    "|assistants?|turns?|messages?|prompts?|train(?:ing)?"
)
_PARTS_ONLY: Final = re.compile(f"(?:{_PARTS})+")
_SWITCHES: Final = frozenset(
    ("true", "false", "t", "f", "yes", "no", "y", "n", "on", "off", "none", "null", "all", "never", "always", "skip")
)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


@lru_cache(maxsize=1024)  # rows have the same names, again and again
def _names_learning(name: str) -> bool:
    return any(_LEARNS.fullmatch(word) for word in _words(name))


def marks_learning(name: str, value: Any) -> bool:
    """Return whether a turn's key may say that the turn, or a part of it, is not learned."""
    return _names_learning(name) and _switches(value)


def masks_row(name: str) -> bool:
    """Return whether a column is a mask over a row's tokens or turns (`loss_masks`)."""
    return _is_made_of(name, "mask")


def weighs_row(name: str) -> bool:
    """Return whether a column weighs a row or its parts (`sample_weights`)."""
    return _is_made_of(name, "weight")


@lru_cache(maxsize=1024)
def _is_made_of(name: str, needed: str) -> bool:
    words = _words(name)
    return any(needed in word for word in words) and all(_PARTS_ONLY.fullmatch(word) for word in words)


def _switches(value: Any) -> bool:
    """Return whether a value is a number, a word for on or off, or holds nothing but such."""
    value = unpacked(value)
    if isinstance(value, str):
        return value.strip().lower() in _SWITCHES or _is_number(value)
    if isinstance(value, Mapping):
        return bool(value) and all(_switches(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(_switches(inner) for inner in value)
    return isinstance(value, bool | int | float)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
