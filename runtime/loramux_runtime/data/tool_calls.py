"""This module reads the calls that an assistant makes, and the tools that a row gives to it.

Trainers and servers write a call in many forms. Its arguments are read under every name that means
arguments, because a call that is learned without them teaches to call with none.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from loramux_runtime.data.columns import Unused
from loramux_runtime.data.values import empty, unpacked, values_within, without_nulls
from loramux_traces.problems import Problems

#: Most tools of one chat, and calls of one turn.
MAX_TOOLS: Final = 1000
#: Names of a call's arguments: OpenAI's, and those of Llama, LangChain and Anthropic.
_ARGUMENTS: Final = ("arguments", "parameters", "args", "input")
_READ: Final = frozenset(("id", "type", "function", "index", "name", *_ARGUMENTS))


class CallReader:
    """Turns calls and tools into OpenAI's form; what is wrong with one is noted in `problems`.

    With `nulls_absent`, keys inside of them that are null are missing.
    """

    def __init__(self, problems: Problems, unused: Unused, *, nulls_absent: bool) -> None:
        self._problems = problems
        self._unused = unused
        self._nulls_absent = nulls_absent

    def calls(self, line: int, column: str, calls: Any) -> list[dict[str, Any]] | None:
        """Return the calls of a turn, or None if one is bad."""
        if not isinstance(calls, list | tuple) or len(calls) > MAX_TOOLS:
            self._problems.add(line, column, calls, f"must be a list of at most {MAX_TOOLS} calls with function")
            return None
        found = [self._call(line, f"{column}[{at}]", unpacked(call)) for at, call in enumerate(calls)]
        good = [call for call in found if call is not None]
        return good if len(good) == len(found) else None

    def _call(self, line: int, where: str, call: Any) -> dict[str, Any] | None:
        # Name and arguments stand in `function` or beside it, or there is no such key.
        inner = unpacked(call.get("function")) if isinstance(call, Mapping) else None
        holders = {"function.": inner, "": call} if inner is not None else {"": call}
        if not all(isinstance(holder, Mapping) for holder in holders.values()):
            self._problems.add(line, where, call, "must have function with name and arguments")
            return None
        before = self._problems.total
        name = self._one(line, where, holders, ("name",))
        if self._problems.total > before:
            return None
        if not isinstance(name, str) or not name or not encodable(name):
            self._problems.add(line, where, call, "must have function with name and arguments")
            return None
        arguments = self._one(line, where, holders, _ARGUMENTS)
        if self._problems.total > before:
            return None
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, Mapping):
            allowed = "must be a JSON object of the arguments' names and values"
            self._problems.add(line, f"{where}.arguments", arguments, allowed)
            return None
        if not plain_json(arguments):
            self._problems.add(
                line, f"{where}.arguments", "", "must hold JSON values only: Unicode text, finite numbers"
            )
            return None
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) and encodable(call["id"]) else {}
        for prefix, holder in holders.items():
            self._unused.rest(holder, {"name", *_ARGUMENTS} if prefix else set(_READ), f"tool_calls[].{prefix}")
        return {**identity, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}

    def _one(self, line: int, where: str, holders: Mapping[str, Any], names: tuple[str, ...]) -> Any:
        """Return the one value that stands under these names, or None.

        Two that differ are noted: whichever is taken, the other is lost.
        """
        values = {}
        for prefix, holder in holders.items():
            for name in names:
                value = holder.get(name)
                said = value if name == "name" else unpacked(value)
                if not empty(said):
                    nulls = self._nulls_absent and isinstance(value, Mapping)
                    values[f"{prefix}{name}"] = without_nulls(said) if nulls else said
        first = next(iter(values.values()), None)
        for name, value in values.items():
            if value != first:
                self._problems.add(
                    line, f"{where}.{name}", value, f"contradicts {next(iter(values))}: give one of them"
                )
        return first

    def tools(self, line: int, column: str, value: Any) -> tuple[Mapping[str, Any], ...] | None:
        """Return the tools of a row in OpenAI's form, or None if one is bad."""
        tools = unpacked(value)
        if not isinstance(tools, list | tuple) or len(tools) > MAX_TOOLS:
            self._problems.add(line, column, value, f"must be a list of at most {MAX_TOOLS} tools, or its JSON text")
            return None
        found = []
        for at, tool in enumerate(tools):
            tool = unpacked(tool)
            inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
            named = isinstance(inner, Mapping) and isinstance(inner.get("name"), str) and inner["name"]
            if not named or not plain_json(tool):
                self._problems.add(line, f"{column}[{at}]", tool, "must be a JSON object of a function with name")
                return None
            tool = tool if "function" in tool else {"type": "function", "function": tool}
            found.append(without_nulls(tool) if self._nulls_absent else tool)
        return tuple(found)


def encodable(text: str) -> bool:
    """Return whether a text can be written in UTF-8 (it holds no half of a surrogate pair)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def plain_json(value: Any) -> bool:
    """Return whether a value can be written as JSON in UTF-8, with finite numbers."""
    for item, _ in values_within(value):
        if isinstance(item, str):
            fits = encodable(item)
        elif isinstance(item, float):
            fits = isfinite(item)
        else:
            fits = item is None or isinstance(item, Mapping | list | tuple | bool | int)
        if not fits:
            return False
    return True
