"""This module gives a command its options as one object.

The object is a dataclass whose fields are the options, instead of a parameter each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Decorate a command that is given an `options` object; typer sees one option per field.

    The fields are annotated as the parameters of a command are; a field without a default is
    required.
    """

    def wrap(command: Callable[[T], None]) -> Callable[..., None]:
        hints = get_type_hints(options, include_extras=True)
        parameters = []
        for field in fields(options):  # type: ignore[arg-type]  # there is no bound for "a dataclass"
            empty = field.default is MISSING
            default = inspect.Parameter.empty if empty else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            hint = hints[field.name]
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hint))

        def called(**values: Any) -> None:
            command(options(**values))

        called.__doc__ = command.__doc__
        called.__name__ = command.__name__
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
        called.__annotations__ = {name: hints[name] for name in hints}
        return called

    return wrap
