"""This module turns a row's fields into the text that a model sees.

It also says which characters of the text are the answer.

Instruction rows use a template: plain text with {instruction}, {input} and {output}; {{ and }} are
braces. It is data, not code: no attributes, indices, conversions or format specifications.
Everything from {output} on is the answer. Where a row has no input, {input} becomes empty; the
default template is Alpaca's, whose two forms differ by it.

Chat rows without the tokenizer's own chat template read

    ### System:
    (text)

    ### User:
    (text)

    ### Assistant:
    (text)(end of sequence)

and an assistant turn is learned from its first character to its end of sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Final

ALPACA_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)
ALPACA_WITHOUT_INPUT: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n{output}"
)
FIELDS: Final = ("instruction", "input", "output")
_HEADINGS: Final = {"system": "### System:\n", "user": "### User:\n", "assistant": "### Assistant:\n"}
_ALLOWED: Final = "a template may hold plain text, {instruction}, {input} and {output}; write {{ and }} for braces"

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Message:
    """Holds one turn; `role` is system, developer, user, assistant or tool."""

    role: str
    content: str | None
    """Text; None: an assistant turn that only calls tools."""
    learned: bool = True
    """Whether an assistant turn is learned; others never are."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else a chat template is told: tool_calls, reasoning_content, name, tool_call_id."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Holds the text of one row and where its answers are."""

    text: str
    spans: tuple[Span, ...]
    """Ranges [start, end) of characters that are answers, in order."""
    add_special: bool = True
    """Whether the tokenizer adds its beginning of sequence.

    A chat template has already written it.
    """
    last_turn_only: bool = False
    """Whether the chat template hides where earlier answers are.

    Only the last answer can then be learned.
    """


def _pieces(template: str) -> list[tuple[str, str | None]]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{_ALLOWED} ({error})") from error
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in FIELDS or spec or conversion):
            raise ValueError(f"{_ALLOWED} (found {{{name[:40]}}})")
    return [(literal, name) for literal, name, _, _ in parsed]


def check_template(template: str) -> None:
    """Raise ValueError unless `template` has {instruction} and, last and once, {output}.

    The error says what is allowed.
    """
    names = [name for _, name in _pieces(template) if name is not None]
    if names.count("output") != 1:
        raise ValueError("a template must hold {output} exactly once: that is what is learned")
    if names[-1] != "output" or "instruction" not in names:
        raise ValueError("a template must hold {instruction}, and {output} after it (and after {input})")


def render_instruction(template: str | None, *, instruction: str, input: str, output: str) -> Rendered:
    """Write one instruction row with `template` (None: Alpaca's).

    Field texts are never read as templates.
    """
    if template is None:
        template = ALPACA_WITH_INPUT if input else ALPACA_WITHOUT_INPUT
    values = {"instruction": instruction, "input": input, "output": output}
    text = ""
    start = 0
    for literal, name in _pieces(template):
        text += literal
        if name == "output":
            start = len(text)
        if name is not None:
            text += values[name]
    return Rendered(text, ((start, len(text)),))


def as_messages(*, instruction: str, input: str, output: str) -> list[Message]:
    """Return an instruction row as a chat of one exchange, for the tokenizer's chat template."""
    asked = f"{instruction}\n\n{input}" if input else instruction
    return [Message("user", asked), Message("assistant", output)]


def render_plain_chat(messages: Sequence[Message], eos_text: str) -> Rendered:
    """Write a chat in the plain form that the module's docstring shows.

    `eos_text` is what the tokenizer reads as its end of sequence.
    """
    text = ""
    spans: list[Span] = []
    for message in messages:
        text += ("\n\n" if text else "") + _HEADINGS[message.role]
        start = len(text)
        text += message.content or ""
        if message.role == "assistant":
            text += eos_text
            spans.append((start, len(text)))
    return Rendered(text, tuple(spans))
