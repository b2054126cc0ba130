"""This module checks the values that the configurations of all methods have.

There is no torch in here: a jobs file is read without it. The bounds are those of every reader;
they are checked again where a configuration is made, so that no other way leads to an adapter
that takes all memory.
"""

from __future__ import annotations

from typing import Any

from loramux_traces.limits import LARGEST, MAX_EXPERTS, MAX_NAME, MAX_NAMES, MAX_RANK
from loramux_traces.problems import shown


def check_lora(config: Any) -> None:
    """Check rank, alpha, dropout and the linears of a configuration.

    Raises ValueError on values without meaning.
    """
    check_whole("rank", config.rank, 1, MAX_RANK)
    check_number("alpha", config.alpha, 0.0, LARGEST)
    if not config.alpha > 0:
        raise ValueError(f"alpha must be above 0, not {shown(config.alpha)}")
    check_number("dropout", config.dropout, 0.0, 1.0)
    if not config.dropout < 1:
        raise ValueError(f"dropout must be below 1, not {shown(config.dropout)}")
    names = getattr(config, "target_modules", ())
    if not isinstance(names, str):
        check_names("target_modules", names)


def check_experts(value: Any) -> None:
    """Raise ValueError where this is no number of experts of a layer."""
    check_whole("num_experts", value, 1, MAX_EXPERTS)


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise ValueError where a value is not a whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {shown(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {shown(value)}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, not {shown(value)}")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raise ValueError where a value is not a finite number within bounds (ends included)."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}, not {shown(value)}")


def check_names(name: str, values: Any) -> None:
    """Raise ValueError where this is not a list of names of reasonable number and length."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list of names, not {shown(values)}")
    if len(values) > MAX_NAMES:
        raise ValueError(f"{name} must be at most {MAX_NAMES} names, not {len(values)}")
    for value in values:
        if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
            raise ValueError(f"{name} must be names of at most {MAX_NAME} characters, not {shown(value)!r}")
