"""This module finds out where each turn of a chat stands in its text, by one more rendering.

To ask a template for every beginning of a chat takes a time that grows with the square of its
turns. So marks are put around what each turn says, and the text is written once more. It is
believed only if it is the same text without the marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from loramux_runtime.data.templates import Message, Span

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK: Final = re.compile(f"{_OPEN}([0-9]+)([<>]){_CLOSE}")


def _marked(message: Message, index: int) -> Message:
    said = message.content or ""
    inner = said.strip()
    if not inner:
        return message
    # Templates strip what turns say: marks stand inside of the blanks.
    at = said.index(inner)
    marked = f"{_OPEN}{index}<{_CLOSE}{inner}{_OPEN}{index}>{_CLOSE}"
    return replace(message, content=said[:at] + marked + said[at + len(inner) :])


def places(chat: Callable[[Sequence[Message]], str], messages: Sequence[Message], full: str) -> list[Span | None]:
    """Return where each turn's own text is in `full`, which is what `chat` makes of the messages.

    None stands for turns that say nothing; all are None where the template does more with what
    turns say than to write it down.
    """
    unknown: list[Span | None] = [None] * len(messages)
    if _OPEN in full:
        return unknown
    try:
        text = chat([_marked(message, index) for index, message in enumerate(messages)])
    except ValueError:
        return unknown
    found = list(unknown)
    plain: list[str] = []
    at = length = 0
    begun: tuple[int, int] | None = None
    for mark in _MARK.finditer(text):
        plain.append(text[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        index, opens = int(mark[1]), mark[2] == "<"
        if opens and begun is None and index < len(messages) and found[index] is None:
            begun = (index, length)
        elif not opens and begun is not None and begun[0] == index:
            found[index], begun = (begun[1], length), None
        else:
            return unknown
    plain.append(text[at:])
    return found if begun is None and "".join(plain) == full else unknown
