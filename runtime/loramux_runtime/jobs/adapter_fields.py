"""Check the fields of a job's `adapter`, and make the configuration of its method from them.

What policies and cost models are told of an adapter (rank, alpha, dropout, experts) has the types
of a trace's columns, so that a job that is taken here can be put in a trace's terms. Every other
number is finite, and no list is long.
"""

from __future__ import annotations

import math
from dataclasses import fields
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from loramux_runtime.fused.adapters.configs import CONFIGS
from loramux_runtime.jobs.other_names import elsewhere
from loramux_traces import limits
from loramux_traces.errors import printable
from loramux_traces.file_model import faults, nearest
from loramux_traces.job_types import (
    Dropout,
    Experts,
    Positive,
    Rank,
    broken_rule,
    is_absent,
    plain_number,
    without_blanks,
)

_SHARED: Final[dict[str, tuple[TypeAdapter[Any], str]]] = {
    "rank": (TypeAdapter(Rank), f"a whole number from 1 to {limits.MAX_RANK}"),
    "alpha": (TypeAdapter(Positive), f"a number from {limits.SMALLEST:g} to {limits.LARGEST:g}"),
    "dropout": (TypeAdapter(Dropout), "a number from 0 to below 1"),
    "num_experts": (TypeAdapter(Experts), f"a whole number from 1 to {limits.MAX_EXPERTS}"),
    "top_k": (TypeAdapter(Experts), f"a whole number from 1 to {limits.MAX_EXPERTS}"),
}
_LISTS: Final = ("num_experts",)
"""Fields that may hold a list of such numbers where the method says so."""
_ENDLESS: Final = ("entropy_threshold",)
"""Fields in which infinity means something."""


def adapter_config(method: str, given: dict[str, Any]) -> Any:
    """Return the configuration dataclass of a method.

    Raises ValueError, which names an unknown or wrong field.
    """
    return _configured(CONFIGS[method], given, "adapter")


@cache
def _validator(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # a millisecond to make


def _configured(kind: type[Any], given: dict[str, Any], where: str) -> Any:
    known = {field.name: str(field.type) for field in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            said = elsewhere(str(name), where.split("."))
            hint = f"; {said}" if said else nearest(str(name), known)
            raise broken_rule(where, f"has no field {printable(str(name), 80)!r}{hint}")
        if name == "attention" and isinstance(value, dict):
            values[name] = _configured(CONFIGS["lora"], value, f"{where}.attention")
        elif name == "attention" or not is_absent(value):
            values[name] = _checked(f"{where}.{name}", name, without_blanks(value), known[name])
    try:
        return _validator(kind).validate_python(values)  # type: ignore[arg-type]  # a class can be hashed
    except ValidationError as error:
        first = faults(error, values)[0]
        raise broken_rule(".".join(filter(None, (where, first.field))), first.allowed) from error


def _checked(place: str, name: str, value: Any, kind: str) -> Any:
    if isinstance(value, list):
        if len(value) > limits.MAX_NAMES:
            raise broken_rule(place, f"may have at most {limits.MAX_NAMES} members")
        if name not in _LISTS:
            return value
        return [_checked(f"{place}.{at}", name, member, kind) for at, member in enumerate(value)]
    if name in _SHARED:
        adapter, allowed = _SHARED[name]
        try:
            return adapter.validate_python(plain_number(value))
        except (ValidationError, ValueError) as error:
            raise broken_rule(place, f"must be {allowed}") from error
    if "bool" not in kind and isinstance(value, bool):
        raise broken_rule(place, "must not be true or false")
    if isinstance(value, int | float) and name not in _ENDLESS and not abs(value) <= limits.LARGEST:
        raise broken_rule(place, f"must be a finite number, of at most {limits.LARGEST:g}")
    if isinstance(value, float) and math.isnan(value):
        raise broken_rule(place, "must be a number")
    return value
