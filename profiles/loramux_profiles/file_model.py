"""This module checks data from a stranger's file as a pydantic model.

There is one problem per bad key.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from loramux_profiles.datafiles import problem
from loramux_traces.errors import InvalidInputError, Problem, printable
from loramux_traces.job_types import PATTERN_SAID
from loramux_traces.problems import CAP

Model = TypeVar("Model", bound=BaseModel)
MAX_KEY: Final = 120
"""Characters of a field's name that a message shows."""

_SAID: Final = {
    **dict.fromkeys(("model_type", "dict_type", "dataclass_type"), "must be a mapping of fields to values"),
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    "path_type": "must be the path of a file or folder",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "string_type": "must be text",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:,}",
    "greater_than": "must be above {gt:,}",
    "less_than_equal": "must be at most {le:,}",
    "less_than": "must be below {lt:,}",
}
"""What pydantic says in Python's words, by its type of error; with what is allowed."""
_CHECKS: Final = ("function-after[", "function-before[", "function-wrap[", "function-plain[")

LineOf = Callable[[tuple[str | int, ...]], int]


def validate(model: type[Model], path: Path | str, data: dict[str, Any], line_of: LineOf | None = None) -> Model:
    """Return `data` as a pydantic model.

    Raises InvalidInputError with one problem per bad key, named with dots; `line_of` says on which
    line of the file the value at a path begins.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems: list[Problem] = []
        items = error.errors(include_url=False)
        within = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
        for item in items:
            loc = item["loc"]
            if item["type"] == "job_rule":  # a rule over several fields says which of them is meant
                loc = (*loc, *(int(part) if part.isdecimal() else part for part in item["ctx"]["column"].split(".")))
            if item["type"] == "too_short" and loc in within:
                continue  # a list is short of the members that are wrong themselves
            if len(problems) == CAP:
                break
            # pydantic also names the checks on the way, as in function-after[check(), DataConfig]
            named = (str(part) for part in loc if not str(part).startswith(_CHECKS))
            key = printable(".".join(named), MAX_KEY)
            value = None if item["type"] == "missing" or isinstance(item["input"], dict | list) else item["input"]
            said = item["msg"].removeprefix("Value error, ")
            if item["type"] in _SAID:
                said = _SAID[item["type"]].format(**item.get("ctx", {}))
            elif item["type"] == "string_pattern_mismatch":
                said = PATTERN_SAID.get(item["ctx"]["pattern"], said)
            if item["type"] == "extra_forbidden":
                value = None
                said = f"is no field{_meant(model, loc)}"
            problems.append(problem(path, key, value, said, line_of(loc) if line_of is not None else 0))
        raise InvalidInputError(problems, total=len(items) if len(problems) == CAP else len(problems)) from error


def _meant(model: Any, loc: tuple[int | str, ...]) -> str:
    """Return `; did you mean ...?` for a field that the model at that place does not have.

    It is empty where no field is close.
    """
    for part in loc[:-1]:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = fields[part].annotation
        elif not isinstance(part, int):
            return ""
        while get_args(model):  # of a list or an optional, take what is in it
            model = get_args(model)[0]
    close = get_close_matches(str(loc[-1]), getattr(model, "model_fields", {}), n=1)
    return f"; did you mean {close[0]}?" if close else ""
