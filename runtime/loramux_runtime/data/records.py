"""This module says what a row of a file can be: an instruction, a completion, a chat or a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loramux_runtime.data.templates import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Holds a question and its answer; all but these two may be empty."""

    instruction: str
    input: str
    output: str
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier questions with their answers, which are learned too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """Holds a text and how it goes on; only the latter is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Holds the turns of a conversation; the last one is an assistant's that is learned."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    """Tools that the chat template is to describe, in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class Text:
    """Holds the plain text of a row."""

    text: str


Record = Instruction | Completion | Chat | Text
