"""This module holds tokenised rows with their labels, and the one way to make them from text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from loramux_runtime.data.source import invalid
from loramux_runtime.data.templates import Rendered
from loramux_runtime.data.tokenizer import Encoded, Tokenizer, TokenizerFailure
from loramux_runtime.fused.labels import IGNORED
from loramux_traces.arrays import Bools, Ints
from loramux_traces.problems import Problems

_Ids = np.ndarray[Any, np.dtype[np.int32]]
#: A batch for the tokenizer has at most this many rows and, of several rows, bytes: tokens take a
#: hundred times the memory of text, and a character may be four tokens.
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TokenisedRows:
    """Holds rows as a sequence of (tokens, labels).

    Both are int64 arrays of one length, [tokens of the row]. `labels[t]` is the token at t, to be
    predicted from those before it, or -100 where nothing is learned; the first token never is. The
    tokens are kept flat, five bytes each, so that 100,000 rows are a hundred megabytes and not a
    gigabyte. They may be mapped from a file, and several jobs may have rows of the same tokens: a
    selection copies none.
    """

    ids: _Ids
    """[tokens] int32, in which the rows lie."""
    learned: Bools
    """[tokens]."""
    begins: Ints
    """[rows]: row i is ids[begins[i] : ends[i]]."""
    ends: Ints

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, row: int) -> tuple[Ints, Ints]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        here = slice(int(self.begins[row]), int(self.ends[row]))
        tokens = self.ids[here].astype(np.int64)
        return tokens, np.where(self.learned[here], tokens, IGNORED)

    def __iter__(self) -> Iterator[tuple[Ints, Ints]]:
        return (self[row] for row in range(len(self)))

    def length(self, row: int) -> int:
        """Return the number of tokens of a row."""
        return int(self.ends[row] - self.begins[row])

    @property
    def lengths(self) -> Ints:
        """Return the number of tokens of each row, [rows]."""
        return self.ends - self.begins

    @property
    def starts(self) -> Ints:
        """Return the number of tokens before each row, and of all, [rows + 1]."""
        starts = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=starts[1:])
        return starts

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of all rows."""
        return int(self.lengths.sum())

    @property
    def n_labels(self) -> int:
        """Return the number of learned tokens of all rows."""
        return sum(int(np.count_nonzero(self.learned[here])) for here in self._runs())

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the rows' content, wherever the rows lie.

        A resumed job must find the data it left.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.starts).tobytes())
        for array in (self.ids, self.learned):
            for here in self._runs():
                digest.update(np.ascontiguousarray(array[here]).data)
        return digest.hexdigest()

    def keys(self) -> list[bytes]:
        """Return one key per row; rows of equal tokens have equal keys."""
        return [
            hashlib.blake2b(self.ids[begin:end].tobytes(), digest_size=16).digest()
            for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True)
        ]

    def select(self, rows: Sequence[int] | Ints) -> TokenisedRows:
        """Return these rows, in this order; their tokens are not copied."""
        chosen = np.asarray(rows, dtype=np.int64)
        return TokenisedRows(self.ids, self.learned, _fixed(self.begins[chosen]), _fixed(self.ends[chosen]))

    def _runs(self) -> Iterator[slice]:
        """Yield where the tokens of all rows are, in order: rows that follow on are one slice."""
        if not len(self):
            return
        breaks = np.flatnonzero(self.begins[1:] != self.ends[:-1]) + 1
        firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(self)]]) - 1
        for begin, end in zip(self.begins[firsts].tolist(), self.ends[lasts].tolist(), strict=True):
            yield slice(begin, end)


def _fixed(array: Ints) -> Ints:
    array.flags.writeable = False
    return array


def _joined(ids: Sequence[_Ids], learned: Sequence[Bools]) -> TokenisedRows:
    starts = np.zeros(len(ids) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in ids], out=starts[1:])
    flat = np.concatenate([np.empty(0, np.int32), *ids])
    mask = np.concatenate([np.empty(0, np.bool_), *learned])
    for array in (starts, flat, mask):
        array.flags.writeable = False
    return TokenisedRows(flat, mask, starts[:-1], starts[1:])


class RowBuilder:
    """Collects tokenised rows, and notes tokens that the base model does not know in `problems`.

    `vocab_size` is the base model's; rows are cut at `max_tokens`, and a row with nothing left to
    learn is left out.
    """

    def __init__(
        self, tokenizer: Tokenizer, problems: Problems, *, vocab_size: int, max_tokens: int, answers_only: bool = True
    ) -> None:
        self.cut = 0
        """Number of rows that were longer than max_tokens (those skipped included)."""
        self.skipped = 0
        """Number of rows left out because they have no learned token within max_tokens."""
        self._tokenizer = tokenizer
        self._problems = problems
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._answers_only = answers_only
        self._added = tuple(np.array(added, dtype=np.int32) for added in tokenizer.added)
        self._turn_ends: dict[str, int | None] = {}
        self._waiting: list[tuple[int, Rendered]] = []
        self._bytes = 0
        self._ids: list[_Ids] = []
        self._learned: list[Bools] = []

    def add(self, line: int, rendered: Rendered) -> None:
        """Take the text of one row; `line` is where it stands in its file."""
        size = len(rendered.text) if rendered.text.isascii() else len(rendered.text.encode())
        if len(self._waiting) >= _BATCH_ROWS or self._bytes + size > _BATCH_BYTES:
            self._tokenise()
        self._waiting.append((line, rendered))
        self._bytes += size

    def finish(self) -> TokenisedRows:
        """Return all rows, in the order in which they came."""
        self._tokenise()
        return _joined(self._ids, self._learned)

    def _tokenise(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        by_kind: dict[bool, Iterator[Encoded]] = {}
        for special in (False, True):
            texts = [rendered.text for _, rendered in waiting if rendered.add_special is special]
            try:
                by_kind[special] = iter(self._tokenizer.encode(texts, add_special=special) if texts else ())
            except TokenizerFailure as failure:
                lines = [line for line, rendered in waiting if rendered.add_special is special]
                where = f"row {lines[failure.index]} of {self._problems.file}"
                raise invalid(self._tokenizer.name, f"its tokenizer fails on {where}: {failure.said}") from failure
        for line, rendered in waiting:
            self._append(line, *self._row(rendered, next(by_kind[rendered.add_special])))

    def _append(self, line: int, ids: _Ids, learned: Bools) -> None:
        if len(ids) > self._max_tokens:
            self.cut += 1
            ids, learned = ids[: self._max_tokens].copy(), learned[: self._max_tokens].copy()
        if not learned.any():
            self.skipped += 1
            return
        largest = int(ids.max())
        if largest >= self._vocab_size:
            allowed = f"token ids must be below {self._vocab_size}, the base model's vocabulary"
            has = f"the tokenizer {self._tokenizer.name} has {self._tokenizer.vocab_size}"
            self._problems.add(line, "", f"token id {largest}", f"{allowed} ({has})")
            return
        self._ids.append(ids)
        self._learned.append(learned)

    def _row(self, rendered: Rendered, encoded: Encoded) -> tuple[_Ids, Bools]:
        """Return the tokens of the whole text, and which of them are learned.

        A token is learned if it holds a character of an answer; the end of sequence is learned too.
        The text is tokenised as a whole, as the model will see it. A token that reaches from the
        prompt into the answer is learned, because otherwise the start of the answer would never be
        learned. What a chat template writes after the end of a turn (a line break, an end of the
        whole conversation) is not: generation has stopped by then.
        """
        ids, begins, ends = self._once(rendered, encoded)
        learned = np.zeros(len(ids), dtype=np.bool_)
        keep: int | None = None
        for span in rendered.spans:
            # Byte-level tokenizers may trim blanks off the offsets: a token of blanks alone is then
            # (end, end).
            held = (ends > span[0]) & ((begins < span[1]) | (ends <= span[1]))
            after = self._after_turn(rendered, ids, begins, ends, np.flatnonzero(held).tolist())
            if after is not None:
                held[after:] = False
                if span is rendered.spans[-1]:
                    keep = after
            learned |= held
        if keep is not None:
            ids, learned = ids[:keep], learned[:keep]
        elif len(ids) and ids[-1] == self._tokenizer.eos_id:
            learned[-1] = True
        else:
            ids, learned = np.append(ids, np.int32(self._tokenizer.eos_id)), np.append(learned, True)
        if not self._answers_only:
            learned[:] = True
        learned[0] = False
        return ids, learned

    def _once(self, rendered: Rendered, encoded: Encoded) -> tuple[_Ids, Ints, Ints]:
        """Return ids and offsets of a text; what the tokenizer adds is there once, not twice.

        A text may begin with the beginning of sequence that the tokenizer puts before every text.
        """
        ids = np.array(encoded.ids, dtype=np.int32)
        begins, ends = encoded.offsets.T
        if rendered.add_special:
            front, back = self._added
            a, b = len(front), len(ids) - len(back)
            if a and np.array_equal(ids[a : 2 * a], front):
                ids, begins, ends, b = ids[a:], begins[a:], ends[a:], b - a
            if len(back) and np.array_equal(ids[max(0, b - len(back)) : b], back):
                ids, begins, ends = ids[:b], begins[:b], ends[:b]
        return ids, begins, ends

    def _after_turn(self, rendered: Rendered, ids: _Ids, begins: Ints, ends: Ints, held: list[int]) -> int | None:
        """Return the token after the one that ends a turn whose tokens are `held`.

        The end is the chat template's own (or else the first) of the special tokens after which the
        turn has nothing but special tokens and blanks, with those that follow it at once. It is
        None where no token ends it.
        """
        eos = self._tokenizer.eos_id
        # A chat template has an end of turn of its own; any other text ends with the tokenizer's.
        special = frozenset((eos,)) if rendered.add_special else self._tokenizer.special_ids
        first = len(held)
        while first and (ids[held[first - 1]] in special or _blank(rendered.text, begins, ends, held[first - 1])):
            first -= 1
        stops = [token for token in held[first:] if ids[token] in special]
        if not stops:
            return None
        first_stop = stop = next((token for token in stops if ids[token] == self._turn_end(rendered)), stops[0])
        while stop + 1 in stops:
            stop += 1
        closing = rendered.closed and stop > first_stop and ids[stop] == eos
        return stop if closing else stop + 1

    def _turn_end(self, rendered: Rendered) -> int | None:
        """Return the first special token of what the chat template writes after a turn's text."""
        text = rendered.turn_end
        if text not in self._turn_ends:
            ids = self._tokenizer.encode([text], add_special=False)[0].ids if text else []
            self._turn_ends[text] = next((i for i in ids if i in self._tokenizer.special_ids), None)
        return self._turn_ends[text]


def _blank(text: str, begins: Ints, ends: Ints, token: int) -> bool:
    return not text[int(begins[token]) : int(ends[token])].strip()
