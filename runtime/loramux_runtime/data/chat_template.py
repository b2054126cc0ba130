"""This module writes conversations with the chat template that came with a model's tokenizer.

It gives a template what transformers gives it. Two things differ: a template that does not end is
stopped (`jinja_limits`), and the time that a template asks for is an argument, in UTC, so that the
same rows are made tomorrow, after a restart and in another time zone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template

from loramux_runtime.data.jinja_limits import (
    MAX_SIZE,
    MAX_TEMPLATE,
    LimitedEnvironment,
    TemplateLimitError,
)
from loramux_runtime.data.values import values_within

#: Operations that a template may use on any conversation; a long one gets more.
_LEAST_OPERATIONS: Final = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class ChatTemplate:
    """Is a chat template, ready to be used."""

    source: str
    compiled: Template
    environment: LimitedEnvironment

    def names(self, *words: str) -> bool:
        """Return whether any of these words stands in the template."""
        return any(word in self.source for word in words)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        ask: bool = False,
        rendered_at: datetime | None = None,
        special_tokens: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text; with `ask` it ends where the model is to answer.

        `rendered_at` is the time that the template is told, by default now. Raises
        TemplateLimitError where the template does not end, and whatever the template raises.
        """
        at = (rendered_at or datetime.now(UTC)).astimezone(UTC)
        self.environment.begin(_LEAST_OPERATIONS + 1000 * len(messages) + _characters(messages, tools))
        pieces: list[str] = []
        size = 0
        for piece in self.compiled.generate(
            **(special_tokens or {}),
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=ask,
            strftime_now=lambda format: at.strftime(str(format)[:200]),
        ):
            size += len(piece)
            if size > MAX_SIZE:
                raise TemplateLimitError(f"writes over {MAX_SIZE} characters")
            pieces.append(piece)
        return "".join(pieces)


def _characters(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> int:
    """Return the number of characters of all texts in these values."""
    nested: list[Any] = [tools]
    found = 0
    for message in messages:
        for key, value in message.items():
            found += len(key)
            if isinstance(value, str):
                found += len(value)
            else:
                nested.append(value)
    return found + sum(len(item) for item, _ in values_within(*nested) if isinstance(item, str))


@lru_cache(maxsize=8)
def chat_template(source: str) -> ChatTemplate:
    """Return a template, compiled.

    Raises TemplateLimitError for a source that is too long, and jinja2's errors for a wrong one.
    """
    if len(source) > MAX_TEMPLATE:
        raise TemplateLimitError(f"has over {MAX_TEMPLATE} characters")
    environment = LimitedEnvironment()
    environment.begin(_LEAST_OPERATIONS)
    return ChatTemplate(source, environment.from_string(source), environment)
