"""This module finds what a chat template leaves out of a chat that it is given.

A template may know no system turns, no tools or no reasoning, and then most write the rest without
a word. What is missing is found by writing the chat again without it: the text is then the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from loramux_runtime.data.templates import Message

Tools = Sequence[Mapping[str, Any]] | None
#: Turns of a chat that are tried for whether the template leaves them out.
_MOST_TRIED: Final = 8


class LossCheck:
    """Refuses chats of which the template leaves something out; `chat` is how it writes."""

    def __init__(self, chat: Callable[[Sequence[Message], Tools], str]) -> None:
        self._chat = chat
        self._kept: set[tuple[str, tuple[str, ...]]] = set()
        """Kinds of turns that the template is known to write."""

    def check(self, messages: Sequence[Message], tools: Tools, full: str, *, knows_reasoning: bool) -> bool:
        """Raise ValueError where the template leaves out something of this chat.

        `full` is its text; `knows_reasoning` says whether the template names reasoning at all.
        Returns whether it left out reasoning, which templates that know it do in earlier turns.
        """
        self._check_turns(messages, tools, full)
        self._check_calls(messages, tools, full)
        if tools:
            named = all(tool["function"]["name"] in full for tool in tools)
            if not named or self._same(messages, None, full):
                raise ValueError("the model's chat template leaves out the tools of this row")
        thoughts = [message.extra["reasoning_content"] for message in messages if "reasoning_content" in message.extra]
        if not thoughts:
            return False
        left_out = any(thought.strip() not in full for thought in thoughts)
        left_out = left_out or self._same([_without(m, "reasoning_content", "thinking") for m in messages], tools, full)
        if left_out and not knows_reasoning:
            raise ValueError(
                "the model's chat template leaves out reasoning_content; put it into content, or leave it out"
            )
        return left_out

    def _check_turns(self, messages: Sequence[Message], tools: Tools, full: str) -> None:
        at = tried = 0
        for index, message in enumerate(messages):
            text = (message.content or "").strip()
            kind = (message.role, tuple(message.extra))
            found = full.find(text, at)
            missing = found < 0 and text not in full
            # Where a text is not there as it stands, it may be there in another form. Where it is,
            # it may be another turn's. To try takes a rendering of the whole chat; templates treat
            # the turns of one kind alike.
            if text and (missing or kind not in self._kept) and tried < _MOST_TRIED:
                tried += 1
                other = [*messages]
                other[index] = replace(message, content=f"x{message.content}x")
                if self._same(other, tools, full):
                    raise ValueError(f"the model's chat template leaves out what turn {index} ({message.role}) says")
                self._kept.add(kind)
            at = max(at, found)

    def _check_calls(self, messages: Sequence[Message], tools: Tools, full: str) -> None:
        calling = [index for index, message in enumerate(messages) if "tool_calls" in message.extra]
        for index in calling:
            if any(call["function"]["name"] not in full for call in messages[index].extra["tool_calls"]):
                raise ValueError(f"the model's chat template leaves out the tool_calls of turn {index}")
        if calling and self._same([_without(message, "tool_calls") for message in messages], tools, full):
            raise ValueError(f"the model's chat template leaves out the tool_calls of turn {calling[0]}")

    def _same(self, messages: Sequence[Message], tools: Tools, full: str) -> bool:
        try:
            return self._chat(messages, tools) == full
        except ValueError:  # the template looks at it, then
            return False


def _without(message: Message, *names: str) -> Message:
    kept = {name: value for name, value in message.extra.items() if name not in names}
    return replace(message, content=message.content or "", extra=kept) if len(kept) < len(message.extra) else message
