"""This module turns a row of a file into an instruction, a chat or a text.

What is wrong with a row is put into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loramux_runtime.data.config import DataConfig
from loramux_runtime.data.templates import Message
from loramux_traces.problems import Problems

#: Longest text of one field, in characters; a line of a file has the same limit in bytes.
MAX_TEXT: Final = 1 << 20
#: Most turns of one chat.
MAX_TURNS: Final = 1000
_ALIASES: Final = {
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "output": ("output", "completion", "answer", "response"),
    "messages": ("messages", "conversations"),
    "text": ("text",),
}
_ROLES: Final = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SHAPES: Final = (("role", "content"), ("from", "value"))
#: What a row must have to be of a format, in the order in which `auto` tries the formats.
_NEEDED: Final = {"chat": ("messages",), "instruction": ("instruction", "output"), "text": ("text",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Holds a question and its answer; `input` may be empty."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Holds the turns of a conversation; the last one is the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Holds the plain text of a row."""

    text: str


Record = Instruction | Chat | Text


class RecordReader:
    """Turns rows into records of one format; what cannot be turned is noted in `problems`."""

    def __init__(self, config: DataConfig, problems: Problems) -> None:
        self.format: str = config.format
        """Format of the rows: instruction, chat or text; `auto` until a row has shown which."""
        self._problems = problems
        given = {
            "instruction": config.instruction_field,
            "input": config.input_field,
            "output": config.output_field,
            "messages": config.messages_field,
            "text": config.text_field,
        }
        self._names: dict[str, tuple[str, ...]] = {
            field: _ALIASES[field] if name is None else (name,) for field, name in given.items()
        }

    def read(self, line: int, row: Any) -> Record | None:
        """Return the record of one row, or None if the row is bad."""
        if not isinstance(row, Mapping):
            self._problems.add(line, "", row, "a row must be a mapping of field names to values")
            return None
        if self.format == "auto":
            self.format = self._recognise(row)
        if self.format == "chat":
            return self._chat(line, row)
        if self.format == "text":
            text = self._text(line, row, "text")
            return None if text is None else Text(text)
        if self.format == "instruction":
            asked, extra, answer = (
                self._text(line, row, "instruction"),
                self._text(line, row, "input", required=False),
                self._text(line, row, "output"),
            )
            if asked is None or extra is None or answer is None:
                return None
            return Instruction(instruction=asked, input=extra, output=answer)
        known = "; or ".join(" and ".join("|".join(self._names[f]) for f in needed) for needed in _NEEDED.values())
        self._problems.add(line, "", ", ".join(map(str, list(row)[:8])), f"its fields must hold {known}")
        return None

    def _recognise(self, row: Mapping[Any, Any]) -> str:
        for format, needed in _NEEDED.items():
            if all(any(row.get(name) is not None for name in self._names[field]) for field in needed):
                return format
        return "auto"

    def _name(self, row: Mapping[Any, Any], field: str) -> str:
        names = self._names[field]
        return next((name for name in names if row.get(name) is not None), names[0])

    def _text(self, line: int, row: Mapping[Any, Any], field: str, *, required: bool = True) -> str | None:
        name = self._name(row, field)
        return self._checked(line, name, row.get(name), "|".join(self._names[field]) if required else "")

    def _checked(self, line: int, column: str, value: Any, required: str) -> str | None:
        """Return `value` if it is proper text; otherwise note a problem and return None.

        Where text is not `required`, None counts as empty text.
        """
        if value is None and not required:
            return ""
        if value is None:
            allowed = f"is required: text ({required})"
        elif not isinstance(value, str):
            allowed = "must be text"
        elif len(value) > MAX_TEXT:
            allowed = f"may have at most {MAX_TEXT} characters"
        elif required and not value.strip():
            allowed = "must not be empty"
        elif not _encodable(value):
            value, allowed = "", "must be Unicode text (it holds half of a surrogate pair)"
        else:
            return value
        self._problems.add(line, column, value, allowed)
        return None

    def _chat(self, line: int, row: Mapping[Any, Any]) -> Chat | None:
        column = self._name(row, "messages")
        turns = row.get(column)
        if not isinstance(turns, Sequence) or isinstance(turns, str | bytes) or not 0 < len(turns) <= MAX_TURNS:
            allowed = f"must be a list of 1 to {MAX_TURNS} turns, each with role and content, or from and value"
            self._problems.add(line, column, turns, allowed)
            return None
        messages = [self._turn(line, f"{column}[{i}]", turn) for i, turn in enumerate(turns)]
        good = [message for message in messages if message is not None]
        if len(good) < len(messages):
            return None
        # Turns after the last answer have no answer: they would only be read, never learned from.
        while good and good[-1].role != "assistant":
            good.pop()
        if not good:
            self._problems.add(line, column, "", "needs at least one assistant turn")
            return None
        return Chat(tuple(good))

    def _turn(self, line: int, column: str, turn: Any) -> Message | None:
        keys = None
        if isinstance(turn, Mapping):
            keys = next((keys for keys in _SHAPES if turn.get(keys[0]) is not None), None)
        if keys is None:
            self._problems.add(line, column, turn, "a turn must have role and content, or from and value")
            return None
        said = turn[keys[0]]
        role = _ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            self._problems.add(line, f"{column}.{keys[0]}", said, f"must be one of {', '.join(_ROLES)}")
            return None
        content = turn.get(keys[1])
        # System and user turns may be empty, but not missing; an empty answer teaches nothing but
        # to stop.
        required = "an answer" if role == "assistant" or content is None else ""
        text = self._checked(line, f"{column}.{keys[1]}", content, required)
        return None if text is None else Message(role, text)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
