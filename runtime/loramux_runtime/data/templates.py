"""This module turns a row's fields into the text that a model sees.

It also says which characters of the text are the answer.

Instruction rows use a template: plain text with {instruction}, {input} and {output}; {{ and }} are
braces. It is data, not code: no attributes, indices, conversions or format specifications.
Everything from {output} on is the answer. Where a row has no input, {input} becomes empty; the
default template is Alpaca's, whose two forms differ by it. A row's system text stands before the
template's, in place of Alpaca's own first paragraph. Earlier questions of its history stand before
it, each with its answer in the same template, and a blank line after the end of sequence; their
answers are learned too.

Chat rows without the tokenizer's own chat template read

    ### System:
    (text)

    ### User:
    (text)

    ### Assistant:
    (text)(end of sequence)

with `### Tool:` for what a tool said, and an assistant turn is learned from its first character to
its end of sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import Formatter
from typing import Any, Final

_PREAMBLE_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_PREAMBLE: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_WITH_INPUT: Final = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
_WITHOUT_INPUT: Final = "### Instruction:\n{instruction}\n\n### Response:\n{output}"
FIELDS: Final = ("instruction", "input", "output")
_HEADINGS: Final = {
    "system": "### System:\n",
    "developer": "### System:\n",
    "user": "### User:\n",
    "assistant": "### Assistant:\n",
    "tool": "### Tool:\n",
}
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
    names: Mapping[str, str] = field(default_factory=dict)
    """What the row calls a part of `extra`, where that is another name."""

    def called(self, name: str) -> str:
        """Return what the row calls a part of `extra`, for messages to people."""
        return self.names.get(name, name)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Holds the text of one row and where its answers are."""

    text: str
    spans: tuple[Span, ...]
    """Ranges [start, end) of characters that are answers, in order."""
    add_special: bool = True
    """Whether the tokenizer adds its beginning of sequence.

    A chat template has already written it, and ends its turns by itself.
    """
    closed: bool = False
    """Whether the chat template closes a conversation with one more end of sequence.

    It stands after the end of the last turn, and no turn in the middle has it.
    """
    turn_end: str = ""
    """What the chat template writes after the text of a last turn; empty where that is unknown."""
    last_turn_only: bool = False
    """Whether the chat template hides where earlier answers are.

    Only the last answer can then be learned.
    """
    reasoning_left_out: bool = False
    """Whether the chat template wrote some turn without its reasoning."""


@lru_cache(maxsize=16)
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


def render_instruction(
    template: str | None,
    *,
    instruction: str,
    input: str,
    output: str,
    system: str = "",
    history: Sequence[tuple[str, str]] = (),
    eos_text: str = "",
) -> Rendered:
    """Write one instruction row with `template` (None: Alpaca's), after what came before it.

    Field texts are never read as templates. `eos_text` ends the earlier answers.
    """
    text = f"{system}\n\n" if system else ""
    if template is None and not system:
        text = _PREAMBLE_WITH_INPUT if input and not history else _PREAMBLE
    spans: list[Span] = []
    for asked, answer in history:
        text += _filled(template, instruction=asked, input="", output=answer, before=text, spans=spans) + eos_text
        spans[-1] = (spans[-1][0], len(text))
        text += "\n\n"
    text += _filled(template, instruction=instruction, input=input, output=output, before=text, spans=spans)
    return Rendered(text, tuple(spans))


def _filled(template: str | None, *, instruction: str, input: str, output: str, before: str, spans: list[Span]) -> str:
    """Return a template with its fields, and add to `spans` where its answer is."""
    if template is None:
        template = _WITH_INPUT if input else _WITHOUT_INPUT
    values = {"instruction": instruction, "input": input, "output": output}
    text = ""
    start = 0
    for literal, name in _pieces(template):
        text += literal
        if name == "output":
            start = len(text)
        if name is not None:
            text += values[name]
    spans.append((len(before) + start, len(before) + len(text)))
    return text


def as_messages(
    *, instruction: str, input: str, output: str, system: str = "", history: Sequence[tuple[str, str]] = ()
) -> list[Message]:
    """Return an instruction row as a chat, for the tokenizer's chat template."""
    asked = f"{instruction}\n\n{input}" if input else instruction
    messages = [Message("system", system)] if system else []
    for question, answer in (*history, (asked, output)):
        messages += [Message("user", question), Message("assistant", answer)]
    return messages


def render_plain_chat(messages: Sequence[Message], eos_text: str) -> Rendered:
    """Write a chat in the plain form that the module's docstring shows.

    `eos_text` is what the tokenizer reads as its end of sequence. Raises ValueError for calls of
    tools and reasoning, which only a chat template can write.
    """
    for at, message in enumerate(messages):
        for name in ("tool_calls", "reasoning_content"):
            if name in message.extra:
                raise ValueError(
                    f"turn {at} has {message.called(name)}: only the chat template of a tokenizer can write it"
                )
    text = ""
    spans: list[Span] = []
    for message in messages:
        text += ("\n\n" if text else "") + _HEADINGS[message.role]
        start = len(text)
        text += message.content or ""
        if message.role == "assistant":
            text += eos_text
            if message.learned:
                spans.append((start, len(text)))
    return Rendered(text, tuple(spans))
