"""This module finds the answers in a chat that the model's own template has written.

An answer is what the template writes after the prompt that would ask the model for it, its end of
turn included. Some templates rewrite earlier turns when later ones follow (they strip a reasoning
block, say). An earlier answer is then not where it was when it was asked for. An answer that
nothing was asked before, and one before which the template refuses to ask, begins where the text
changes with it. Only the first answers of each kind are asked for: those after them, and those of
later chats, stand between the same texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from loramux_runtime.data.chat_places import Kind, Places
from loramux_runtime.data.templates import Message, Span

#: Answers so near the beginning are cheap to ask the template for.
_FEW_TURNS: Final = 8
#: Turns that the template may be asked to write in search of one chat's answers.
_MOST_TURNS_WRITTEN: Final = 20_000
#: Kinds of answers of which it is kept what is around them.
_MOST_KINDS: Final = 1024


class Write(Protocol):
    """Writes turns as the template does; ValueError where it refuses them."""

    def __call__(self, messages: Sequence[Message], *, ask: bool = False) -> str: ...


#: By kinds of turns: the texts before and after an answer, and what a request opens in its place.
Around = dict[tuple[Any, ...], tuple[str, str, str]]


class AnswerFinder:
    """Finds where the answers of one chat begin and end in its text `full`.

    `chat` writes turns of it (with `ask`: and asks for an answer); `unclosed` takes off the end of
    sequence with which the template closes a conversation, and `inner_end` is what ends an answer
    there that another turn follows. `places` are where the turns are, and
    `around` is what earlier chats have shown.
    """

    def __init__(
        self,
        chat: Write,
        unclosed: Callable[[str], str],
        messages: list[Message],
        full: str,
        *,
        inner_end: str,
        kinds: Sequence[Kind],
        places: Places | None,
        around: Around,
    ) -> None:
        self._chat = chat
        self._unclosed = unclosed
        self._messages = messages
        self._full = full
        self._inner_end = inner_end
        self._kinds = kinds
        full_end = (len(full), len(full))
        self._places = None if places is None else ((0, 0), *places, full_end)
        self._around = around
        self._turns_left = _MOST_TURNS_WRITTEN
        self._opened = ""
        """What the request for the last answer that was asked for opens in the answer's place."""
        self._last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)

    def span(self, index: int) -> Span | None:
        """Return where the answer of turn `index` is; None where the template has rewritten it."""
        last = index == len(self._messages) - 1
        between = self._between(index)
        if between is None:
            return self._asked(index, last)
        begin, end = between
        # Templates rewrite answers that a user's turn follows, however far behind.
        is_current = index > self._last_user
        kind = (min(index, _FEW_TURNS), last, is_current, *self._kinds[max(0, index - 1) : index + 2])
        if kind in self._around:
            before, after, opened = self._around[kind]
            start, stop = begin + len(before), end - len(after)
            if (
                start < stop
                and self._full.startswith(before, begin)
                and self._full.endswith(after, begin, end)
                and not (opened and self._full.startswith(opened, start))
            ):
                return start, stop
        span = self._asked(index, last)
        if span is not None and begin <= span[0] <= span[1] <= end and len(self._around) < _MOST_KINDS:
            self._around[kind] = (self._full[begin : span[0]], self._full[span[1] : end], self._opened)
        return span

    def _between(self, index: int) -> Span | None:
        """Return the text between what the turn before says and what the turn after says."""
        if self._places is None:
            return None
        before, after = self._places[index], self._places[index + 2]
        return None if before is None or after is None or before[1] > after[0] else (before[1], after[0])

    def _asked(self, index: int, last: bool) -> Span | None:
        """Return where the answer is, by asking the template for it."""
        self._turns_left -= 2 * (index + 1)
        if self._turns_left < 0 and not last:
            return None
        upto = self._full
        if not last:
            try:
                upto = self._chat(self._messages[: index + 1])
            except ValueError:
                return None
            if not self._full.startswith(upto):
                upto = self._unclosed(upto)
                if not self._full.startswith(upto):
                    return None
                if self._full.startswith(self._inner_end, len(upto)):
                    upto += self._inner_end
        start = self._start(self._messages[: index + 1], upto)
        return None if start is None or start >= len(upto) else (start, len(upto))

    def _start(self, messages: list[Message], upto: str) -> int | None:
        """Return where the answer of the last of these messages begins in `upto`."""
        before = messages[:-1]
        self._opened = ""
        if before:
            try:
                asked = self._chat(before, ask=True)
            except ValueError:  # it wants a user's turn first, say
                return self._start_by_change(messages, upto)
            if upto.startswith(asked):
                return len(asked)
            # The request may end with something that a given answer does not have (an opened
            # reasoning block).
            told = self._chat(before)
            told = told if upto.startswith(told) else self._unclosed(told)
            shared = self._without_answer(before, asked, _shared(asked, upto))
            if shared > len(told) and upto.startswith(told):
                self._opened = asked[shared:]
                return shared
        return self._start_by_change(messages, upto)

    def _without_answer(self, before: list[Message], asked: str, shared: int) -> int:
        """Return how much of what a request and an answered chat share is no part of the answer.

        Where a request opens a reasoning block, an answer may begin like it: `<table>`.
        """
        other = Message("assistant", "y" if asked.startswith("x", shared) else "x")
        try:
            return min(shared, _shared(asked, self._chat([*before, other])))
        except ValueError:
            return shared

    def _start_by_change(self, messages: list[Message], upto: str) -> int | None:
        """Return where the text begins to change when the last message says something else."""
        *before, answer = messages
        said = (answer.content or "").lstrip()
        other = Message("assistant", ("y" if said.startswith("x") else "x") + said)
        try:
            changed = self._chat([*before, other])
            closed, asked = self._chat(messages), self._chat(messages, ask=True)
        except ValueError:
            return None
        shared = _shared(upto, changed)
        if shared >= len(upto):
            return None
        if all(message.role in ("system", "developer") for message in before):
            # No other answer is before it: what asks for an answer is this one's heading.
            told = closed if asked.startswith(closed) else self._unclosed(closed)
            heading = asked[len(told) :] if asked.startswith(told) else ""
            at = upto.rfind(heading, 0, shared) if heading else -1
            if at >= 0:
                return at + len(heading)
        return shared


def _shared(a: str, b: str) -> int:
    """Return the number of characters that two texts begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
