"""This module finds what a chat template leaves out of a chat that it is given.

A template may know no system turns, no tools, no arguments or no reasoning, and then most write the
rest without a word. A word that stands elsewhere proves nothing: so the chat is written again with
a mark in each place. Where a mark is missing, the chat is written once more with that place alone
changed: the text is then the same if the template leaves it out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from loramux_runtime.data.chat_places import Places, marked_places
from loramux_runtime.data.templates import Message

Tools = Sequence[Mapping[str, Any]] | None
#: Places of one chat that are tried one by one, each by a rendering of the whole chat.
_MOST_TRIED: Final = 64
#: Turns that may be written for such tries, and what each turn of a file adds to them: a template
#: that hides marks would cost 64 renderings of every chat. What it leaves out it leaves out early.
_TURNS_TRIED: Final = 20_000
_TURNS_ADDED: Final = 2
_REASONING: Final = ("reasoning_content", "thinking")
#: What of a tool is to be read.
_WORDS: Final = ("name", "description", "parameters")


class LossCheck:
    """Refuses chats of which the template leaves something out; `chat` is how it writes."""

    def __init__(self, chat: Callable[[Sequence[Message], Tools], str]) -> None:
        self._chat = chat
        self._turns_left = _TURNS_TRIED

    def check(
        self, messages: Sequence[Message], tools: Tools, full: str, *, places: Places | None, knows_reasoning: bool
    ) -> tuple[bool, Places | None]:
        """Raise ValueError where the template leaves out something of this chat.

        `full` is its text, `places` where in it the turns are known to be, and `knows_reasoning`
        whether the template names reasoning at all. Returns whether it left out reasoning of
        earlier turns, which templates that know it do, and the places, where they were found.
        """
        if places is not None and not tools and not any(message.extra for message in messages):
            return False, places
        tries = min(_MOST_TRIED, self._turns_left // max(1, len(messages)))
        losses = _Losses(self._chat, messages, tools, full, tries)
        try:
            places = places or losses.check_turns()
            return losses.check_rest(knows_reasoning), places
        finally:
            self._turns_left += len(messages) * (_TURNS_ADDED + losses.tries - tries)


class _Losses:
    """Looks for what is left out of one chat."""

    def __init__(
        self,
        chat: Callable[[Sequence[Message], Tools], str],
        messages: Sequence[Message],
        tools: Tools,
        full: str,
        tries: int,
    ) -> None:
        self._chat, self._messages, self._tools, self._full = chat, messages, tools, full
        self.tries = tries
        stem, lower = "zq", full.lower()
        while stem in lower:
            stem += "q"
        self._stem = stem

    def check_turns(self) -> Places | None:
        """Raise ValueError where a turn is left out; return where the turns are, if that shows."""
        said = {
            index: self._said(index) for index, message in enumerate(self._messages) if (message.content or "").strip()
        }
        text = self._written(said) if said else ""
        marks = self._marks(text)
        for index, message in said.items():
            if self._mark("c", index) not in marks and self._same({index: message}):
                raise ValueError(f"the model's chat template leaves out what turn {index} ({message.role}) says")
        self._check_parts(said, text)
        return marked_places(re.compile(f"{self._stem}c([0-9]+)z", re.IGNORECASE), text, self._messages, self._full)

    def _check_parts(self, said: Mapping[int, Message], text: str) -> None:
        """Raise ValueError where the template writes only a part of what a turn says.

        A mark at one end is not there then. A template may also take a turn apart and write all of
        it: the words are there, with other blanks. One that takes reasoning out of an answer once a
        later turn follows has written it when it was asked for.
        """
        lower = text.lower()
        cut = [index for index in said if lower.count(self._mark("c", index)) == 1]
        for index in {*cut[:1], *cut[-1:]}:
            words = _squeezed(self._messages[index].content or "")
            if words in _squeezed(self._full) or (index < len(self._messages) - 1 and self._wrote(index, words)):
                continue
            role = self._messages[index].role
            raise ValueError(
                f"the model's chat template leaves out a part of what turn {index} ({role}) says, such as reasoning; "
                "use another template, or rows of prompt and completion, which need none"
            )

    def _wrote(self, index: int, words: str) -> bool:
        """Return whether the template writes all of a turn where no other follows."""
        if not self.tries:
            return True
        self.tries -= 1
        try:
            return words in _squeezed(self._chat(self._messages[: index + 1], self._tools))
        except ValueError:  # it does not end a chat there
            return True

    def check_rest(self, knows_reasoning: bool) -> bool:
        """Raise ValueError for other losses; return whether reasoning of earlier turns is lost."""
        calling = {
            index: message.extra["tool_calls"]
            for index, message in enumerate(self._messages)
            if "tool_calls" in message.extra
        }
        thinking = {
            index: self._thought(index, message)
            for index, message in enumerate(self._messages)
            if "reasoning_content" in message.extra
        }
        if not (calling or thinking or self._tools):
            return False
        with_calls = {
            index: self._with_calls(index, [self._call(index, at, c, True, True) for at, c in enumerate(calls)])
            for index, calls in calling.items()
        }
        tools = [self._tool(at, tool, *_WORDS) for at, tool in enumerate(self._tools or ())]
        # All at once: each kind of place has a rendering of its own only where this does not show.
        both = {index: self._thought(index, message) for index, message in with_calls.items() if index in thinking}
        marks = self._marks(self._written({**thinking, **with_calls, **both}, tools or None))
        self._check_calls(calling, with_calls, marks)
        self._check_tools(tools, marks)
        return self._check_reasoning(thinking, marks, knows_reasoning)

    def _check_calls(
        self, calling: Mapping[int, Any], with_calls: Mapping[int, Message], marks: frozenset[str]
    ) -> None:
        missing = [
            (index, at, key)
            for index, calls in calling.items()
            for at, call in enumerate(calls)
            for key in "na"
            if self._mark(key, index, at) not in marks and not (key == "a" and not _given(call))
        ]
        marks = self._marks(self._written(with_calls)) if missing else marks
        for index, at, key in missing:
            if self._mark(key, index, at) in marks:
                continue
            other = [*calling[index]]
            other[at] = self._call(index, at, other[at], key == "n", key == "a")
            if self._same({index: self._with_calls(index, other)}):
                calls = self._messages[index].called("tool_calls")
                what = calls if key == "n" else f"arguments of the {calls}"
                raise ValueError(f"the model's chat template leaves out the {what} of turn {index} (call {at})")

    def _check_tools(self, tools: Sequence[Mapping[str, Any]], marks: frozenset[str]) -> None:
        missing = [
            (at, key)
            for at, (tool, changed) in enumerate(zip(self._tools or (), tools, strict=True))
            for key in _WORDS
            if changed["function"].get(key) != tool["function"].get(key) and self._mark(f"t{key}", at) not in marks
        ]
        if not missing:
            return
        if self._same({}, None):
            raise ValueError("the model's chat template leaves out the tools of this row")
        marks = self._marks(self._written({}, tools))
        for at, key in missing:
            if self._mark(f"t{key}", at) in marks:
                continue
            every = [*(self._tools or ())]
            every[at] = self._tool(at, every[at], key)
            if self._same({}, every):
                what = "tools" if key == "name" else f"{key.removesuffix('s')}s of the tools"
                raise ValueError(f"the model's chat template leaves out the {what} of this row (tool {at})")

    def _check_reasoning(self, thinking: Mapping[int, Message], marks: frozenset[str], knows_reasoning: bool) -> bool:
        if not thinking:
            return False
        shown: str | None = None
        if not marks:
            shown = self._written(thinking)
            marks = self._marks(shown)
        left_out = [
            index
            for index, message in thinking.items()
            if self._mark("r", index) not in marks and (shown != "" or self._same({index: message}))
        ]
        if left_out and (not knows_reasoning or left_out[-1] == len(self._messages) - 1):
            which = " of the last answer, which is learned" if knows_reasoning else ""
            what = self._messages[left_out[-1]].called("reasoning_content")
            raise ValueError(
                f"the model's chat template leaves out {what}{which}; put it into content, or leave it out"
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

    def _thought(self, index: int, message: Message) -> Message:
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
        """Return the chat with these messages, and tools; "" where it is refused."""
        try:
            return self._chat(self._with(changed), tools or self._tools)
        except ValueError:
            return ""

    def _marks(self, text: str) -> frozenset[str]:
        """Return the marks in a text, whatever its case."""
        return frozenset(re.findall(f"{self._stem}[a-z]+[0-9x]+z", text.lower()))

    def _same(self, changed: Mapping[int, Message], *tools: Tools) -> bool:
        """Return whether the text stays what it is with these messages, or these tools."""
        if not self.tries:
            return False
        self.tries -= 1
        try:
            return self._chat(self._with(changed), tools[0] if tools else self._tools) == self._full
        except ValueError:  # the template looks at it, then
            return False

    def _with(self, changed: Mapping[int, Message]) -> list[Message]:
        return [changed.get(index, message) for index, message in enumerate(self._messages)]


def _squeezed(text: str) -> str:
    return "".join(text.lower().split())


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
