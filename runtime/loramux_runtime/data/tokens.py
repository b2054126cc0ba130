"""This module holds the tokens of texts, and finds those of them that hold a span's characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from loramux_runtime.data.templates import Rendered

#: Ids, and places of characters: no text has 2,147,483,648.
Numbers = np.ndarray[Any, np.dtype[np.int32]]
#: Tokens of a text from which on their offsets are not made as a list.
_MANY_TOKENS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Tokens:
    """Holds the tokens of texts, each with the characters [begin, end) of its text that it is from.

    What the tokenizer has added came from nowhere: it is at (0, 0).
    """

    ids: Numbers
    begins: Numbers
    ends: Numbers
    counts: Sequence[int]
    """Number of tokens of each text, in order."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, here: slice) -> Tokens:
        ids = self.ids[here]
        return Tokens(ids, self.begins[here], self.ends[here], (len(ids),))

    @staticmethod
    def of(encodings: Sequence[Any]) -> Tokens:
        """Return the tokens of tokenizers' Encodings, which take far more memory."""
        counts = [len(encoding) for encoding in encodings]
        count = sum(counts)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, count)
        pairs = chain.from_iterable(map(_offsets, encodings))
        offsets = np.fromiter(chain.from_iterable(pairs), np.int32, 2 * count)
        return Tokens(ids, offsets[::2], offsets[1::2], counts)

    @staticmethod
    def joined(parts: Sequence[Tokens], front: Sequence[int] = (), back: Sequence[int] = ()) -> Tokens:
        """Return the tokens of the parts of one text, with what is added before and after it."""
        nowhere = [np.zeros(len(added), np.int32) for added in (front, back)]
        ids = np.concatenate([np.array(front, np.int32), *(part.ids for part in parts), np.array(back, np.int32)])
        begins = np.concatenate([nowhere[0], *(part.begins for part in parts), nowhere[1]])
        ends = np.concatenate([nowhere[0], *(part.ends for part in parts), nowhere[1]])
        return Tokens(ids, begins, ends, (len(ids),))


def _offsets(encoding: Any) -> Iterator[tuple[int, int]]:
    if len(encoding) <= _MANY_TOKENS:
        return iter(encoding.offsets)
    # A list of pairs takes 130 bytes a token. What was added is nowhere: (0, 0).
    return (encoding.token_to_chars(token) or (0, 0) for token in range(len(encoding)))


def held_tokens(rows: Sequence[Rendered], tokens: Tokens) -> Iterator[Sequence[int]]:
    """Yield for each span of each row the tokens that hold a character of it, in order.

    Byte-level tokenizers may trim blanks off the offsets: a token of blanks alone is then (end,
    end). A token that was added is in no span. Where tokens follow on one another, as nearly all
    do, those of a span are a range, found at once: a look at all tokens for each span took 12 s of
    a MiB with 500 answers a row.
    """
    sizes = np.array([len(row.text) + 2 for row in rows], np.int32)
    bases = np.cumsum(sizes, dtype=np.int32) - sizes
    begins, ends = tokens.begins, tokens.ends
    if len(rows) > 1:
        shift = np.repeat(bases, tokens.counts)
        begins, ends = begins + shift, ends + shift
    behind = (tokens.ends == 0) & (np.maximum.accumulate(ends) > ends)
    if behind.any():
        after = np.repeat(bases + sizes - 1, tokens.counts)
        begins, ends = np.where(behind, after, begins), np.where(behind, after, ends)
    spans = [span for row in rows for span in row.spans]
    opens, closes = np.array(spans, np.int32).T + np.repeat(bases, [len(row.spans) for row in rows])
    if (begins[1:] >= begins[:-1]).all() and (ends[1:] >= ends[:-1]).all():
        lasts = np.maximum(begins.searchsorted(closes), ends.searchsorted(closes, side="right"))
        yield from map(range, ends.searchsorted(opens, side="right").tolist(), lasts.tolist())
        return
    for a, b in zip(opens, closes, strict=True):
        yield np.flatnonzero((ends > a) & ((begins < b) | (ends <= b))).tolist()
