"""This module writes records as text and finds the answers in it.

It uses the job's template or the model's chat template.
"""

from __future__ import annotations

from datetime import UTC, datetime

from loramux_runtime.data.chat_writer import ChatWriter
from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.records import Chat, Instruction, Record, Text
from loramux_runtime.data.templates import Rendered, as_messages, render_instruction, render_plain_chat
from loramux_runtime.data.tokenizer import Tokenizer
from loramux_traces.errors import UsageError


class Renderer:
    """Writes the records of one job as text; a chat template is told that it is `rendered_at`.

    Raises UsageError where the job asks for a chat template and the tokenizer has none.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, *, rendered_at: datetime | None = None) -> None:
        if config.use_chat_template and not tokenizer.has_chat_template:
            raise UsageError(f"use_chat_template: the tokenizer {tokenizer.name} has no chat template")
        self._config = config
        self._tokenizer = tokenizer
        # One time for all rows, also where a template asks for the time of day.
        self._chats = ChatWriter(tokenizer, rendered_at or datetime.now(UTC))

    def render(self, record: Record) -> Rendered:
        """Return the text of one record.

        Raises UsageError for settings that do not go with this kind of record, and ValueError, in a
        user's words, for a record that the chat template refuses.
        """
        config = self._config
        if isinstance(record, Instruction):
            return self._instruction(record)
        if config.template is not None:
            raise UsageError(f"{config.path}: template is for instruction rows only, these are {_kind(record)} rows")
        if isinstance(record, Chat):
            if config.use_chat_template or (config.use_chat_template is None and self._tokenizer.has_chat_template):
                return self._chats.write(record.messages, record.tools)
            if record.tools is not None:
                raise ValueError("it has tools: only the chat template of a tokenizer can write them")
            return render_plain_chat(record.messages, self._tokenizer.eos_text)
        if config.use_chat_template:
            raise UsageError(
                f"{config.path}: use_chat_template is for chat and instruction rows, these are {_kind(record)} rows"
            )
        if isinstance(record, Text):
            return Rendered(record.text, ((0, len(record.text)),))
        text = record.prompt + record.completion
        return Rendered(text, ((len(record.prompt), len(text)),))

    def _instruction(self, record: Instruction) -> Rendered:
        if self._config.use_chat_template:
            messages = as_messages(
                instruction=record.instruction,
                input=record.input,
                output=record.output,
                system=record.system,
                history=record.history,
            )
            return self._chats.write(messages, None)
        return render_instruction(
            self._config.template,
            instruction=record.instruction,
            input=record.input,
            output=record.output,
            system=record.system,
            history=record.history,
            eos_text=self._tokenizer.eos_text,
        )


def _kind(record: Record) -> str:
    return type(record).__name__.lower()
