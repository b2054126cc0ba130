"""Data from a stranger's file as a pydantic model, with one problem per bad key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from loramux_profiles.datafiles import problem
from loramux_traces.errors import InvalidInputError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], path: Path | str, data: dict[str, Any]) -> Model:
    """`data` as a pydantic model. Raises InvalidInputError with one problem per bad key, named with dots."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"])
            value = None if item["type"] == "missing" or isinstance(item["input"], dict | list) else item["input"]
            problems.append(problem(path, key, value, item["msg"].removeprefix("Value error, ")))
        raise InvalidInputError(problems[:50], total=len(problems)) from error
