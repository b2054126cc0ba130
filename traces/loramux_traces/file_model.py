"""Put into words what pydantic found wrong, for files, options and what is made of them.

Every place that checks a model says the same: the field, its value, and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from loramux_traces.errors import InvalidInputError, Problem, printable
from loramux_traces.job_types import PATTERN_SAID
from loramux_traces.problems import CAP, shown

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]
MAX_KEY: Final = 120
"""Characters of a field's name that a message shows."""

_SAID: Final = {
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "dataclass_type"), "must be a mapping of fields to values"
    ),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    "path_type": "must be the path of a file or folder",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "string_unicode": "must be Unicode text (it holds half of a surrogate pair)",
    "string_too_short": "must have at least {min_length:,} characters",
    "string_too_long": "must have at most {max_length:,} characters",
    "too_short": "must have at least {min_length:,} members",
    "too_long": "must have at most {max_length:,} members",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:,}",
    "greater_than": "must be above {gt:,}",
    "less_than_equal": "must be at most {le:,}",
    "less_than": "must be below {lt:,}",
}
"""What pydantic says in Python's words, by its type of error; with what is allowed."""
_CLOSE: Final = 0.75
_MISSING: Final = frozenset(("missing", "missing_argument", "missing_keyword_only_argument"))
_UNKNOWN: Final = frozenset(("extra_forbidden", "unexpected_keyword_argument"))

LineOf = Callable[[Place], int]


@dataclass(frozen=True, slots=True)
class Fault:
    """A Fault is one value that a model does not take: where, which, and what is allowed."""

    place: Place
    value: object
    """None where there is none to be shown."""
    allowed: str

    @property
    def field(self) -> str:
        """The place, with dots between its parts."""
        return printable(".".join(map(str, self.place)), MAX_KEY)

    def __str__(self) -> str:
        value = shown(self.value)
        said = f"{value!r}; {self.allowed}" if value else self.allowed
        return f"{self.field}: {said}" if self.place else said


def faults(error: ValidationError, data: Any, model: Any = None) -> list[Fault]:
    """Return what is wrong with `data`, at most CAP faults in the order of the fields.

    `model` is what knows the names of the fields, for those that are none.
    """
    found: dict[Place, Fault] = {}
    items = error.errors(include_url=False)
    within: set[Place] | None = None
    for item in items:
        kind, loc = item["type"], _place(item["loc"], data, missing=item["type"] in _MISSING)
        if kind == "too_short":
            within = within or {other["loc"][:depth] for other in items for depth in range(len(other["loc"]))}
            if item["loc"] in within:
                continue  # a list is short of the members that are wrong themselves
        value, allowed = item["input"], _allowed(kind, item["msg"], item.get("ctx", {}))
        if kind == "job_rule":  # a rule over several fields says which of them is meant
            column = tuple(int(part) if part.isdecimal() else part for part in item["ctx"]["column"].split("."))
            loc = (*loc, *column)
            value = _value(data, loc)
        elif kind in _MISSING:
            value = None
        elif kind in _UNKNOWN:
            value, allowed = None, f"is no field{_meant(model, loc)}"
        if loc in found:  # of several kinds of values none was given
            also = allowed.removeprefix("must be ")
            found[loc] = replace(found[loc], allowed=f"{found[loc].allowed} or {also}")
            continue
        if len(found) == CAP:
            break
        found[loc] = Fault(loc, None if isinstance(value, dict | list | tuple) else value, allowed)
    return list(found.values())


def validate(model: type[Model], path: Path | str, data: dict[str, Any], line_of: LineOf | None = None) -> Model:
    """Return `data` as a pydantic model.

    Raises InvalidInputError with one problem per bad key, named with dots; `line_of` says on which
    line of the file the value at a path begins.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = faults(error, data, model)
        problems = [
            Problem(
                file=str(path),
                line=line_of(fault.place) if line_of is not None else 0,
                column=fault.field,
                value=shown(fault.value),
                allowed=fault.allowed,
            )
            for fault in found
        ]
        total = error.error_count() if len(found) == CAP else len(found)
        raise InvalidInputError(problems, total=total) from error


def _allowed(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _SAID:
        return _SAID[kind].format(**context)
    if kind in _MISSING:
        return "is required"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'|(\d+)", context["expected"])
        return f"must be {'one of ' if len(names) > 1 else ''}{', '.join(text or number for text, number in names)}"
    if kind == "string_pattern_mismatch":
        return PATTERN_SAID.get(context["pattern"], f"must be text of the form {context['pattern']}")
    return message.removeprefix("Value error, ")


def _place(loc: Sequence[str | int], data: Any, *, missing: bool = False) -> Place:
    """Return a place in `data` without what pydantic names on the way to it.

    That is the checks, as in function-after[check(), DataConfig], and the kinds of a union. Of a
    value that is `missing` the last part is the name.
    """
    place: list[str | int] = []
    for at, part in enumerate(loc):
        if _has(data, part):
            data = data[part]
        elif not (missing and at == len(loc) - 1):
            continue
        place.append(part)
    return tuple(place)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list | tuple):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, Mapping) and part in data


def _value(data: Any, place: Place) -> Any:
    """Return the value at a place that a rule names, or None where there is none."""
    for part in place:
        if not _has(data, part):
            return None
        data = data[part]
    return data


def nearest(name: str, known: Iterable[str]) -> str:
    """Return what is said of a name that is not known: the one that was meant, or all that are.

    Names must be as close as a slip makes them: with difflib's own .6, `split` was taken for limit,
    and `val_set_size` for batch_size.
    """
    names = list(known)
    close = get_close_matches(name, names, n=1, cutoff=_CLOSE)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(names)})" if names else ""


def _meant(model: Any, loc: Place) -> str:
    """Return what is said of a field that the model at that place does not have.

    A model may know more than its fields: `elsewhere(name, place)` says where a name belongs, and
    `read_before` names what the file may have beside them.
    """
    *within, last = loc
    elsewhere = getattr(model, "elsewhere", None)
    if elsewhere is not None and (said := elsewhere(str(last), within)):
        return f"; {said}"
    models = _models(model)
    for part in within:
        if not isinstance(part, int):
            found = [other.model_fields[part].annotation for other in models if part in other.model_fields]
            models = [inner for kind in found for inner in _models(kind)]
    for model in models:
        if last not in model.model_fields:  # of a union, that which was meant
            names = [name for name, field in model.model_fields.items() if not field.exclude]
            return nearest(str(last), (*names, *getattr(model, "read_before", ())))
    return ""


def _models(kind: Any) -> list[Any]:
    """Return the models of a type, be it a list, a mapping, an optional or a union of them."""
    inner = [model for part in get_args(kind) for model in _models(part)]
    return [kind] if hasattr(kind, "model_fields") else inner
