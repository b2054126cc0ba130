"""This module makes the tokens of a long text piece by piece, and they are those of the whole text.

A tokenizer takes two hundred times the memory of its text, and nobody trains on the last million
characters of a row. Each next piece begins at a token of the piece before it, well before its end.
Where both have the same tokens for a while they are joined: from there on, what is left of a place
no longer changes what is right of it. Pieces that have no such place are made longer, up to the
whole text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from loramux_runtime.data.tokenizer import Tokenizer
from loramux_runtime.data.tokens import Tokens

#: Characters of a text from which on it is made into pieces, and of a piece. A prime number: a run
#: of one character that is divided from its end on is then divided otherwise in two pieces.
LONG: Final = 16_381
#: Characters that two pieces have in common.
_SHARED: Final = 1024
#: Tokens that must be the same before and after the place where two pieces are joined.
_AGREE: Final = 32


def pieces(tokenizer: Tokenizer, text: str) -> Iterator[Tokens]:
    """Yield the tokens of a text in order, without what the tokenizer adds around it."""
    at, size, skip = 0, LONG, 0
    piece = _piece(tokenizer, text, at, size)
    while at + size < len(text):
        begin = at + size - min(_SHARED, size // 2)
        first = int(np.argmax(piece.begins >= begin)) if len(piece) else 0
        start = int(piece.begins[first]) if len(piece) else 0
        # Text after the last token was dropped, or the offsets do not say where tokens are.
        is_sure = start >= begin and not text[piece.ends[-1] : at + size].strip()
        following = _piece(tokenizer, text, start, size) if is_sure else None
        here = None if following is None else _same(piece, following, text, (start + at + size) // 2)
        if following is None or here is None or here[0] < skip:
            size += size + 1
            piece = _piece(tokenizer, text, at, size)
            continue
        yield piece[skip : here[0]]
        at, piece, skip = start, following, here[1]
    yield piece[skip:]


def _piece(tokenizer: Tokenizer, text: str, at: int, size: int) -> Tokens:
    tokens = tokenizer.encode([text[at : at + size]], add_special=False)
    return Tokens(tokens.ids, tokens.begins + np.int32(at), tokens.ends + np.int32(at), tokens.counts)


def _same(one: Tokens, other: Tokens, text: str, place: int) -> tuple[int, int] | None:
    """Return where two pieces go on alike from about a place on: a token of each, or None.

    It is not between two digits: tokenizers divide numbers into threes from their beginning on, and
    two pieces may do so differently although their tokens, of single digits, are the same for long.
    """
    a = int(np.argmax(one.begins >= place))
    while a < len(one) and text[max(0, one.begins[a] - 1) : one.begins[a] + 1].isdigit():
        a += 1
    if a == len(one):
        return None
    b = int(np.argmax(other.begins >= one.begins[a]))
    if min(a, b) < _AGREE:
        return None
    left, right = one[a - _AGREE : a + _AGREE], other[b - _AGREE : b + _AGREE]
    alike = len(left) == len(right) == 2 * _AGREE and all(
        np.array_equal(x, y) for x, y in ((left.ids, right.ids), (left.begins, right.begins), (left.ends, right.ends))
    )
    return (a, b) if alike else None
