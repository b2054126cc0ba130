"""This module writes records as text and finds the answers in it.

It uses the job's template or the model's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile

from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.parse import Chat, Instruction, Record
from loramux_runtime.data.templates import (
    Message,
    Rendered,
    Span,
    as_messages,
    render_instruction,
    render_plain_chat,
)
from loramux_runtime.data.tokenizer import Tokenizer
from loramux_traces.errors import UsageError


class Renderer:
    """Writes the records of one job as text.

    Raises UsageError where the job asks for a chat template and the tokenizer has none.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, *, rendered_at: datetime | None = None) -> None:
        if config.use_chat_template and not tokenizer.has_chat_template:
            raise UsageError(f"use_chat_template: the tokenizer {tokenizer.name} has no chat template")
        self._config = config
        self._tokenizer = tokenizer
        # One time for all rows, also where a template asks for the time of day.
        self._rendered_at = rendered_at or datetime.now(UTC)

    def render(self, record: Record) -> Rendered:
        """Return the text of one record.

        Raises UsageError for settings that do not go with this kind of record, and ValueError, in a
        user's words, for a record that the chat template refuses.
        """
        config = self._config
        if isinstance(record, Instruction):
            fields = {"instruction": record.instruction, "input": record.input, "output": record.output}
            if config.use_chat_template:
                return render_chat_template(as_messages(**fields), self._tokenizer, self._rendered_at)
            return render_instruction(config.template, **fields)
        if config.template is not None:
            raise UsageError(f"{config.path}: template is for instruction rows only, these are {_kind(record)} rows")
        if isinstance(record, Chat):
            if config.use_chat_template or (config.use_chat_template is None and self._tokenizer.has_chat_template):
                return render_chat_template(record.messages, self._tokenizer, self._rendered_at)
            return render_plain_chat(record.messages, self._tokenizer.eos_text)
        if config.use_chat_template:
            raise UsageError(f"{config.path}: use_chat_template is for chat and instruction rows, these are text rows")
        return Rendered(record.text, ((0, len(record.text)),))


def _kind(record: Record) -> str:
    return type(record).__name__.lower()


def render_chat_template(
    messages: Sequence[Message], tokenizer: Tokenizer, rendered_at: datetime | None = None
) -> Rendered:
    """Return a chat in the model's own template; its last message must be the assistant's.

    An answer is what the template writes after the prompt that would ask the model for it, its end
    of turn included. Some templates rewrite earlier turns when later ones follow (they strip a
    reasoning block, say). An earlier answer is then not where it was when it was asked for, and
    only the last one is learned. Raises ValueError for a conversation that the template refuses.
    """
    full = tokenizer.chat(messages, rendered_at=rendered_at)
    spans: list[Span] = []
    lost = False
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        last = index == len(messages) - 1
        upto = full if last else tokenizer.chat(messages[: index + 1], rendered_at=rendered_at)
        start = _answer_start(messages[:index], upto, tokenizer, rendered_at)
        if last and start is None:
            raise ValueError("the model's chat template does not show where its answer begins; use another template")
        if start is None or not full.startswith(upto):
            lost = True
        else:
            spans.append((start, len(upto)))
    return Rendered(full, tuple(spans[-1:] if lost else spans), add_special=False, last_turn_only=lost)


def _answer_start(
    before: Sequence[Message], upto: str, tokenizer: Tokenizer, rendered_at: datetime | None
) -> int | None:
    asked = tokenizer.chat(before, ask=True, rendered_at=rendered_at)
    if upto.startswith(asked):
        return len(asked)
    # The request may end with something that a given answer does not have (an opened reasoning
    # block).
    told = tokenizer.chat(before, rendered_at=rendered_at)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, upto, strict=False)))
    return shared if shared > len(told) and upto.startswith(told) else None
