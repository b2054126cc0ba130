"""This module writes chats with the model's own template, and says what of them is learned.

Where a template does not show where an earlier answer is, only the last one is learned. What a
template leaves out of a chat is refused: nobody would see that it is not learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from loramux_runtime.data.chat_answers import AnswerFinder, Around
from loramux_runtime.data.chat_losses import LossCheck, Tools
from loramux_runtime.data.chat_places import KnownTexts, kind
from loramux_runtime.data.templates import Message, Rendered, Span
from loramux_runtime.data.tokenizer import Tokenizer

_PROBE: Final = "An answer."


class ChatWriter:
    """Writes the chats of one job; the template is told that it is `rendered_at`."""

    def __init__(self, tokenizer: Tokenizer, rendered_at: datetime) -> None:
        self._tokenizer = tokenizer
        self._rendered_at = rendered_at
        self._known_ends: tuple[bool, str, str] | None = None
        self._losses = LossCheck(self._chat)
        # A tokenizer may have another template for chats with tools.
        self._known = {with_tools: (KnownTexts(), Around()) for with_tools in (False, True)}

    def write(self, messages: Sequence[Message], tools: Tools) -> Rendered:
        """Return a chat in the model's own template; its last message must be an answer.

        Raises ValueError for a conversation that the template refuses, or of which it leaves out
        what a turn says.
        """
        messages, full = self._whole(self._as_known(messages, tools), tools)
        template = self._tokenizer.chat_template(tools=tools is not None)
        knows = template.names("reasoning_content", "thinking")
        kinds = [kind(message) for message in messages]
        known, around = self._known[tools is not None]
        known_places = known.places(messages, kinds, full)
        left_out, places = self._losses.check(messages, tools, full, places=known_places, knows_reasoning=knows)
        if places is not None and known_places is None:
            known.learn(kinds, full, places)
        spans: list[Span] = []
        lost = False
        chat = partial(self._chat, tools=tools)
        closed, turn_end, inner_end = self._ends()
        finder = AnswerFinder(
            chat, self._unclosed, messages, full, inner_end=inner_end, kinds=kinds, places=places, around=around
        )
        for index, message in enumerate(messages):
            if message.role != "assistant" or not (message.learned or index == len(messages) - 1):
                continue
            if lost and index < len(messages) - 1:
                continue
            span = finder.span(index)
            if span is not None:
                spans.append(span)
            elif index < len(messages) - 1:
                lost = True
            else:
                raise ValueError("the model's chat template does not show where its answer begins; use another one")
        return Rendered(
            full,
            tuple(spans[-1:] if lost else spans),
            add_special=False,
            closed=closed,
            turn_end=turn_end,
            last_turn_only=lost,
            reasoning_left_out=left_out,
        )

    def _chat(self, messages: Sequence[Message], tools: Tools = None, *, ask: bool = False) -> str:
        """Return a conversation as the template writes it; ValueError where it refuses it."""
        return self._tokenizer.chat(messages, ask=ask, tools=tools, rendered_at=self._rendered_at)

    def _whole(self, messages: list[Message], tools: Tools) -> tuple[list[Message], str]:
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

    def _hint(self, messages: list[Message], tools: Tools) -> str:
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

    def _as_known(self, messages: Sequence[Message], tools: Tools) -> list[Message]:
        """Return the messages, with a developer as system where the template knows no other."""
        if self._tokenizer.chat_template(tools=tools is not None).names("developer"):
            return list(messages)
        return [replace(m, role="system") if m.role == "developer" else m for m in messages]

    def _unclosed(self, text: str) -> str:
        """Return a conversation without the end of sequence that the template closes it with."""
        return text.rstrip().removesuffix(self._tokenizer.eos_text)

    def _ends(self) -> tuple[bool, str, str]:
        """Return whether a conversation is closed after its last turn, and what ends a turn.

        Then what ends an answer that another turn follows, where that is something else.
        """
        if self._known_ends is None:
            eos = self._tokenizer.eos_text
            asked, answer = Message("user", "Question?"), Message("assistant", _PROBE)
            try:
                told, more = self._chat([asked, answer]), self._chat([asked, answer, asked])
            except ValueError:
                self._known_ends = (False, "", "")
            else:
                closed = told.rstrip().endswith(eos) and not more.startswith(told.rstrip())
                end = told.rpartition(_PROBE)[2] if _PROBE in told else ""
                closed = closed and more.startswith(self._unclosed(told))
                self._known_ends = (closed, end, self._inner_end(more, asked.content or "") if closed else "")
        return self._known_ends

    def _inner_end(self, chat: str, question: str) -> str:
        """Return what follows the first answer of a chat up to the heading of the next question.

        A heading begins with the last special token before a question.
        """
        first, between = chat.partition(question)[0], chat.partition(_PROBE)[2].rpartition(question)[0]
        tokens = self._tokenizer.encode([first], add_special=False)
        pairs = zip(tokens.ids.tolist(), tokens.begins.tolist(), strict=True)
        begins = [begin for token, begin in pairs if token in self._tokenizer.special_ids]
        return between.rpartition(first[begins[-1] :])[0].rstrip() if begins else ""


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
