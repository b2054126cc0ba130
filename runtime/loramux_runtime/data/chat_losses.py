"""This module finds what a chat template leaves out of a chat that it is given.

A template may know no system turns, no tools, no arguments or no reasoning, and then most write the
rest without a word. A word that stands elsewhere proves nothing: so the chat is written again with
a mark in each place. Where a mark is missing, the chat is written once more with that place alone
changed: the text is then the same if the template leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from loramux_runtime.data.templates import Message

Tools = Sequence[Mapping[str, Any]] | None
#: Places of one chat that are tried one by one, each by a rendering of the whole chat.
_MOST_TRIED: Final = 64
_REASONING: Final = ("reasoning_content", "thinking")


class LossCheck:
    """Refuses chats of which the template leaves something out; `chat` is how it writes."""

    def __init__(self, chat: Callable[[Sequence[Message], Tools], str]) -> None:
        self._chat = chat

    def check(self, messages: Sequence[Message], tools: Tools, full: str, *, knows_reasoning: bool) -> bool:
        """Raise ValueError where the template leaves out something of this chat.

        `full` is its text; `knows_reasoning` says whether the template names reasoning at all.
        Returns whether it left out reasoning of earlier turns, which templates that know it do.
        """
        return _Losses(self._chat, messages, tools, full).check(knows_reasoning)


class _Losses:
    """Looks for what is left out of one chat."""

    def __init__(
        self, chat: Callable[[Sequence[Message], Tools], str], messages: Sequence[Message], tools: Tools, full: str
    ) -> None:
        self._chat, self._messages, self._tools, self._full = chat, messages, tools, full
        self._tries = 0
        stem, lower = "zq", full.lower()
        while stem in lower:
            stem += "q"
        self._stem = stem

    def check(self, knows_reasoning: bool) -> bool:
        """Raise ValueError for a loss; return whether reasoning of earlier turns is left out."""
        self._check_turns()
        self._check_calls()
        self._check_tools()
        return self._check_reasoning(knows_reasoning)

    def _check_turns(self) -> None:
        said = [index for index, message in enumerate(self._messages) if (message.content or "").strip()]
        text = self._written({index: self._said(index) for index in said})
        for index in said:
            message = self._messages[index]
            if self._mark("c", index) not in text and self._same({index: self._said(index)}):
                raise ValueError(f"the model's chat template leaves out what turn {index} ({message.role}) says")

    def _check_calls(self) -> None:
        calling = {
            index: message.extra["tool_calls"]
            for index, message in enumerate(self._messages)
            if "tool_calls" in message.extra
        }
        if not calling:
            return
        marked = {
            index: [self._call(index, at, c, True, True) for at, c in enumerate(calls)]
            for index, calls in calling.items()
        }
        text = self._written({index: self._with_calls(index, calls) for index, calls in marked.items()})
        for index, calls in calling.items():
            for at, call in enumerate(calls):
                for key, what in (("n", "tool_calls"), ("a", "arguments of the tool_calls")):
                    if self._mark(key, index, at) in text or (key == "a" and not _given(call)):
                        continue
                    other = [*calls]
                    other[at] = self._call(index, at, call, key == "n", key == "a")
                    if self._same({index: self._with_calls(index, other)}):
                        raise ValueError(f"the model's chat template leaves out the {what} of turn {index} (call {at})")

    def _check_tools(self) -> None:
        if not self._tools:
            return
        if self._same({}, None):
            raise ValueError("the model's chat template leaves out the tools of this row")
        text = self._written(
            {}, [self._tool(at, tool, "name", "description", "parameters") for at, tool in enumerate(self._tools)]
        )
        for at, tool in enumerate(self._tools):
            for key, what in (
                ("name", "tools"),
                ("description", "descriptions of the tools"),
                ("parameters", "parameters of the tools"),
            ):
                changed = self._tool(at, tool, key)
                if changed == tool or self._mark(f"t{key}", at) in text:
                    continue
                if self._same({}, [*self._tools[:at], changed, *self._tools[at + 1 :]]):
                    raise ValueError(f"the model's chat template leaves out the {what} of this row (tool {at})")

    def _check_reasoning(self, knows_reasoning: bool) -> bool:
        thinking = [index for index, message in enumerate(self._messages) if "reasoning_content" in message.extra]
        text = self._written({index: self._thought(index) for index in thinking})
        left_out = [
            index
            for index in thinking
            if (self._mark("r", index) not in text if text else self._same({index: self._thought(index)}))
        ]
        if left_out and (not knows_reasoning or left_out[-1] == len(self._messages) - 1):
            which = " of the last answer, which is learned" if knows_reasoning else ""
            raise ValueError(
                f"the model's chat template leaves out reasoning_content{which}; put it into content, or leave it out"
            )
        return bool(left_out)

    def _mark(self, kind: str, *at: int) -> str:
        """Return a mark that the text does not hold; letters and digits go through all filters."""
        return f"{self._stem}{kind}{'x'.join(map(str, at))}z"

    def _around(self, text: str, mark: str) -> str:
        # Templates strip what turns say, and split it: marks stand at both ends, inside of blanks.
        inner = text.strip()
        return text.replace(inner, f"{mark}{inner}{mark}", 1) if inner else mark

    def _said(self, index: int) -> Message:
        message = self._messages[index]
        return replace(message, content=self._around(message.content or "", self._mark("c", index)))

    def _thought(self, index: int) -> Message:
        message = self._messages[index]
        thought = self._around(message.extra["reasoning_content"], self._mark("r", index))
        return replace(message, extra={**message.extra, **dict.fromkeys(_REASONING, thought)})

    def _call(self, index: int, at: int, call: Mapping[str, Any], name: bool, arguments: bool) -> dict[str, Any]:
        function = dict(call["function"])
        if name:
            function["name"] += self._mark("n", index, at)
        if arguments:
            # A template may take arguments as text.
            mark, given = self._mark("a", index, at), _given(call)
            changed = {**{key: _other(value, mark) for key, value in given.items()}, mark: mark}
            as_text = isinstance(function["arguments"], str)
            function["arguments"] = json.dumps(changed, ensure_ascii=False) if as_text else changed
        return {**call, "function": function}

    def _with_calls(self, index: int, calls: list[dict[str, Any]]) -> Message:
        message = self._messages[index]
        return replace(message, extra={**message.extra, "tool_calls": calls})

    def _tool(self, at: int, tool: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
        """Return a tool with marks in these of its keys, where it has them."""
        function = dict(tool["function"])
        for key in keys:
            mark, value = self._mark(f"t{key}", at), function.get(key)
            if isinstance(value, str) and value:
                function[key] = value + mark
            elif isinstance(value, Mapping) and isinstance(known := value.get("properties"), Mapping) and known:
                more = {**known, mark: {"type": "string", "description": mark}}
                function[key] = {**value, "properties": more}
        return {**tool, "function": function}

    def _written(self, changed: Mapping[int, Message], tools: Tools = None) -> str:
        """Return the chat with these messages, or tools, in lower case; "" where it is refused."""
        if not changed and tools is None:
            return ""
        try:
            return self._chat(self._with(changed), tools or self._tools).lower()
        except ValueError:
            return ""

    def _same(self, changed: Mapping[int, Message], *tools: Tools) -> bool:
        """Return whether the text stays what it is with these messages, or these tools."""
        self._tries += 1
        if self._tries > _MOST_TRIED:
            return False
        try:
            return self._chat(self._with(changed), tools[0] if tools else self._tools) == self._full
        except ValueError:  # the template looks at it, then
            return False

    def _with(self, changed: Mapping[int, Message]) -> list[Message]:
        return [changed.get(index, message) for index, message in enumerate(self._messages)]


def _given(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments of a call, also where a template takes them as text."""
    arguments = call["function"]["arguments"]
    given: Mapping[str, Any] = json.loads(arguments) if isinstance(arguments, str) else arguments
    return given


def _other(value: Any, mark: str) -> Any:
    """Return another value of the same type, with the mark where it can hold one."""
    if isinstance(value, str):
        return value + mark
    if isinstance(value, list | tuple):
        return [*value, mark]
    if isinstance(value, Mapping):
        return {**value, mark: mark}
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1
