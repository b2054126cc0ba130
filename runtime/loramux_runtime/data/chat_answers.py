"""This module writes chats with the model's own template, and finds the answers in what it wrote.

An answer is what the template writes after the prompt that would ask the model for it, its end of
turn included. Some templates rewrite earlier turns when later ones follow (they strip a reasoning
block, say). An earlier answer is then not where it was when it was asked for, and only the last one
is learned. An answer that nothing was asked before, and one before which the template refuses to
ask, begins where the text changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from loramux_runtime.data.templates import Message, Rendered, Span
from loramux_runtime.data.tokenizer import Tokenizer

_Tools = Sequence[Mapping[str, Any]] | None


class ChatWriter:
    """Writes the chats of one job; the template is told that it is `rendered_at`."""

    def __init__(self, tokenizer: Tokenizer, rendered_at: datetime) -> None:
        self._tokenizer = tokenizer
        self._rendered_at = rendered_at
        self._closes: bool | None = None

    def write(self, messages: Sequence[Message], tools: _Tools) -> Rendered:
        """Return a chat in the model's own template; its last message must be an answer.

        Raises ValueError for a conversation that the template refuses, or of which it leaves out
        what a turn says.
        """
        messages, full = self._whole(self._as_known(messages, tools), tools)
        left_out = self._check_nothing_lost(messages, tools, full)
        spans: list[Span] = []
        lost = False
        last = len(messages) - 1
        for index, message in enumerate(messages):
            if message.role != "assistant" or not (message.learned or index == last):
                continue
            span = self._span(messages, tools, index, full)
            if span is None and index == last:
                raise ValueError("the model's chat template does not show where its answer begins; use another one")
            if span is None:
                lost = True
            else:
                spans.append(span)
        return Rendered(
            full,
            tuple(spans[-1:] if lost else spans),
            add_special=False,
            closed=self._closes_conversations(),
            last_turn_only=lost,
            reasoning_left_out=left_out,
        )

    def _chat(self, messages: Sequence[Message], tools: _Tools, *, ask: bool = False) -> str:
        return self._tokenizer.chat(messages, ask=ask, tools=tools, rendered_at=self._rendered_at)

    def _whole(self, messages: list[Message], tools: _Tools) -> tuple[list[Message], str]:
        """Return the chat as text, and its messages in the form that the template takes.

        Templates differ in how they read a call without text and the arguments of a call. Raises
        ValueError, with what the template may want instead, where it takes none.
        """
        try:
            return messages, self._chat(messages, tools)
        except ValueError as error:
            refusal = error
        if any("tool_calls" in message.extra for message in messages):
            with_text = [replace(message, content=message.content or "") for message in messages]
            for form in (with_text, [_arguments_as_text(message) for message in with_text]):
                try:
                    return form, self._chat(form, tools)
                except ValueError:
                    continue
        raise ValueError(f"{refusal}{self._hint(messages, tools)}") from refusal

    def _hint(self, messages: list[Message], tools: _Tools) -> str:
        """Return what about the roles a template does not take, where it takes the rest."""
        users = [message for message in messages if message.role != "system"]
        systems = messages[: len(messages) - len(users)]
        asked = Message("user", "a")
        forms = (
            (users, "no system turn"),
            ([*systems, asked, *users], "a user's turn first"),
            ([asked, *users], "no system turn and a user's turn first"),
        )
        for form, wish in forms:
            if form and form != messages:
                try:
                    self._chat(form, tools)
                except ValueError:
                    continue
                return f" (it would take this row with {wish})"
        return ""

    def _as_known(self, messages: Sequence[Message], tools: _Tools) -> list[Message]:
        """Return the messages, with a developer as system where the template knows no other."""
        if self._tokenizer.chat_template(tools=tools is not None).names("developer"):
            return list(messages)
        return [replace(m, role="system") if m.role == "developer" else m for m in messages]

    def _span(self, messages: list[Message], tools: _Tools, index: int, full: str) -> Span | None:
        """Return where the answer of turn `index` is in the whole text; None: it was rewritten."""
        if index == len(messages) - 1:
            upto = full
        else:
            try:
                upto = self._chat(messages[: index + 1], tools)
            except ValueError:
                return None
            if not full.startswith(upto):
                upto = self._unclosed(upto)
                if not full.startswith(upto):
                    return None
        start = self._start(messages[: index + 1], tools, upto)
        return None if start is None or start >= len(upto) else (start, len(upto))

    def _unclosed(self, text: str) -> str:
        """Return a conversation without the end of sequence that the template closes it with."""
        return text.rstrip().removesuffix(self._tokenizer.eos_text)

    def _start(self, messages: list[Message], tools: _Tools, upto: str) -> int | None:
        """Return where the answer of the last of these messages begins in `upto`."""
        before = messages[:-1]
        if before:
            try:
                asked = self._chat(before, tools, ask=True)
            except ValueError:  # it wants a user's turn first, say
                return self._start_by_change(messages, tools, upto)
            if upto.startswith(asked):
                return len(asked)
            # The request may end with something that a given answer does not have (an opened
            # reasoning block).
            told = self._unclosed(self._chat(before, tools))
            shared = _shared(asked, upto)
            if shared > len(told) and upto.startswith(told):
                return shared
        return self._start_by_change(messages, tools, upto)

    def _start_by_change(self, messages: list[Message], tools: _Tools, upto: str) -> int | None:
        """Return where the text begins to change when the last message says something else."""
        *before, answer = messages
        said = (answer.content or "").lstrip()
        other = Message("assistant", ("y" if said.startswith("x") else "x") + said)
        try:
            changed = self._chat([*before, other], tools)
            closed, asked = self._chat(messages, tools), self._chat(messages, tools, ask=True)
        except ValueError:
            return None
        shared = _shared(upto, changed)
        if shared >= len(upto):
            return None
        if all(message.role in ("system", "developer") for message in before):
            # No other answer is before it: what asks for an answer is this one's heading.
            told = closed if asked.startswith(closed) else self._unclosed(closed)
            heading = asked[len(told) :] if asked.startswith(told) else ""
            at = upto.rfind(heading, 0, shared) if heading else -1
            if at >= 0:
                return at + len(heading)
        return shared

    def _closes_conversations(self) -> bool:
        """Return whether the template writes an end of sequence after the last turn's own end."""
        if self._closes is None:
            eos = self._tokenizer.eos_text
            asked, answer = Message("user", "a"), Message("assistant", "b")
            try:
                told, more = self._chat([asked, answer], None), self._chat([asked, answer, asked], None)
            except ValueError:
                self._closes = False
            else:
                ends = told.rstrip().endswith(eos)
                self._closes = ends and more.startswith(self._unclosed(told)) and not more.startswith(told.rstrip())
        return self._closes

    def _check_nothing_lost(self, messages: list[Message], tools: _Tools, full: str) -> bool:
        """Refuse a chat of which the template leaves out what a turn says.

        Returns whether it left out reasoning, which templates that know it do to earlier turns.
        """
        at = 0
        for index, message in enumerate(messages):
            text = (message.content or "").strip()
            found = full.find(text, at)
            if found < 0 and text not in full and self._is_lost(messages, tools, full, index):
                raise ValueError(f"the model's chat template leaves out what turn {index} ({message.role}) says")
            at = max(at, found)
            for call in message.extra.get("tool_calls", ()):
                if call["function"]["name"] not in full:
                    raise ValueError(f"the model's chat template leaves out the tool_calls of turn {index}")
        for tool in tools or ():
            if tool["function"]["name"] not in full:
                raise ValueError("the model's chat template leaves out the tools of this row")
        reasoning = [message.extra["reasoning_content"] for message in messages if "reasoning_content" in message.extra]
        left_out = any(text.strip() not in full for text in reasoning)
        template = self._tokenizer.chat_template(tools=tools is not None)
        if left_out and not template.names("reasoning_content", "thinking"):
            raise ValueError(
                "the model's chat template leaves out reasoning_content; put it into content, or leave it out"
            )
        return left_out

    def _is_lost(self, messages: list[Message], tools: _Tools, full: str, index: int) -> bool:
        """Return whether turn `index` could as well say something else."""
        other = [*messages]
        other[index] = replace(messages[index], content=f"x{messages[index].content}x")
        try:
            return self._chat(other, tools) == full
        except ValueError:
            return False


def _arguments_as_text(message: Message) -> Message:
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message.extra.get("tool_calls", ())
    ]
    return replace(message, extra={**message.extra, "tool_calls": calls}) if calls else message


def _shared(a: str, b: str) -> int:
    """Return the number of characters that two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
