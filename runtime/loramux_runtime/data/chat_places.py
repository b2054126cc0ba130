"""This module finds out where each turn of a chat stands in its text.

What a template writes between two turns is most often what it wrote between two such turns of an
earlier chat. Where a text is nothing but such texts and, whole and in order, what the turns say,
its turns are where that puts them. Any other chat is written once more with marks in its turns:
that is believed only if it is the same text without the marks. (To ask a template for every
beginning of a chat takes a time that grows with the square of its turns.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from loramux_runtime.data.templates import Message, Span

Places = Sequence[Span | None]
Kind = tuple[str, bool, tuple[str, ...]]
"""Who speaks, whether anything is said, and what else is told of a turn."""
#: Bounds of what is known of a template: sorts of neighbours, and texts between each of them.
_MOST_SORTS: Final = 1024
_MOST_TEXTS: Final = 4
_LONGEST: Final = 1 << 13


def kind(message: Message) -> Kind:
    """Return what a template may go by beside a turn's text."""
    return message.role, bool(message.content and not message.content.isspace()), tuple(message.extra)


def marked_places(marks: re.Pattern[str], text: str, messages: Sequence[Message], full: str) -> Places | None:
    """Return where what each turn says is in `full`, as the marked `text` shows it.

    `marks` finds the number of a turn; it stands before and after what the turn says. The place is
    None for turns that say nothing. None: the template does more than to write turns down.
    """
    found: list[Span | None] = [None] * len(messages)
    plain: list[str] = []
    at = length = 0
    begun: tuple[int, int] | None = None
    for mark in marks.finditer(text):
        plain.append(text[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        index = int(mark[1])
        if begun is None and index < len(messages) and found[index] is None:
            begun = (index, length)
        elif begun is not None and begun[0] == index:
            found[index], begun = (begun[1], length), None
        else:
            return None
    plain.append(text[at:])
    if begun is not None or "".join(plain) != full:
        return None
    return [place and _with_blanks(message, place, full) for message, place in zip(messages, found, strict=True)]


def _with_blanks(message: Message, place: Span, full: str) -> Span:
    """Return a place with the blanks around what the turn says, where the template writes them."""
    said = message.content or ""
    begin = place[0] - (len(said) - len(said.lstrip()))
    return (begin, begin + len(said)) if begin >= 0 and full.startswith(said, begin) else place


class KnownTexts:
    """Knows what one template has written before, between and after turns of chats."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[str]] = {}

    def places(self, messages: Sequence[Message], kinds: Sequence[Kind], full: str) -> Places | None:
        """Return where what each turn says is in `full`; None where that is not known."""
        found: list[Span | None] = [None] * len(messages)
        at = 0
        for sort, index in _stretches(kinds):
            texts = [text for text in self._known.get(sort, ()) if full.startswith(text, at)]
            if index is None:
                return found if any(at + len(text) == len(full) for text in texts) else None
            said = messages[index].content or ""
            forms = ((at + len(text), form) for text in texts for form in (said, said.strip()))
            place = next(((begin, begin + len(form)) for begin, form in forms if full.startswith(form, begin)), None)
            if place is None:
                return None
            found[index], at = place, place[1]
        return None

    def learn(self, kinds: Sequence[Kind], full: str, places: Places) -> None:
        """Take in what is written around the turns of a chat."""
        at = 0
        for sort, index in _stretches(kinds):
            place = (len(full), len(full)) if index is None else places[index]
            if place is None or place[0] < at:
                return
            text, at = full[at : place[0]], place[1]
            if len(text) <= _LONGEST and (sort in self._known or len(self._known) < _MOST_SORTS):
                known = self._known.setdefault(sort, [])
                if text not in known:
                    self._known[sort] = [text, *known][:_MOST_TEXTS]


def _stretches(kinds: Sequence[Kind]) -> Iterator[tuple[tuple[Any, ...], int | None]]:
    """Yield each turn that says something, and None at the end, with all turns since the last."""
    begin = -1
    for index, (_, says, _) in enumerate(kinds):
        if says:
            yield (begin < 0, *kinds[max(0, begin) : index + 1]), index
            begin = index
    yield (begin < 0, *kinds[max(0, begin) :], None), None
