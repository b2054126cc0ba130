"""This module holds tokenised rows with their labels, and the one way to make them from text."""

from __future__ import annotations

import array
import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

import numpy as np

from loramux_runtime.data.long_texts import LONG, pieces
from loramux_runtime.data.source import invalid
from loramux_runtime.data.templates import Rendered
from loramux_runtime.data.tokenizer import Tokenizer, TokenizerFailure
from loramux_runtime.data.tokens import Numbers, Tokens, held_tokens
from loramux_runtime.fused.labels import IGNORED
from loramux_traces.arrays import Bools, Ints
from loramux_traces.errors import InvalidInputError
from loramux_traces.problems import Problems

#: A batch for the tokenizer has at most this many rows and bytes: tokens take two hundred times the
#: memory of text, and a character may be four tokens.
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 1 << 18
_INT32: Final = Struct("=i")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class TokenisedRows:
    """Holds rows as a sequence of (tokens, labels).

    Both are int64 arrays of one length, [tokens of the row]. `labels[t]` is the token at t, to be
    predicted from those before it, or -100 where nothing is learned; the first token never is. The
    tokens are kept flat, five bytes each, so that 100,000 rows are a hundred megabytes and not a
    gigabyte. They may be mapped from a file, and several jobs may have rows of the same tokens: a
    selection copies none.
    """

    ids: Numbers
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
        for side in (self.ids, self.learned):
            for here in self._runs():
                digest.update(np.ascontiguousarray(side[here]).data)
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
        begins, ends = self.begins[chosen], self.ends[chosen]
        begins.flags.writeable = ends.flags.writeable = False
        return TokenisedRows(self.ids, self.learned, begins, ends)

    def _runs(self) -> Iterator[slice]:
        """Yield where the tokens of all rows are, in order: rows that follow on are one slice."""
        if not len(self):
            return
        breaks = np.flatnonzero(self.begins[1:] != self.ends[:-1]) + 1
        firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(self)]]) - 1
        for begin, end in zip(self.begins[firsts].tolist(), self.ends[lasts].tolist(), strict=True):
            yield slice(begin, end)


class RowBuilder:
    """Collects tokenised rows, and notes tokens that the base model does not know in `problems`.

    `vocab_size` is the base model's; rows are cut at `max_tokens`, and a row with nothing left to
    learn is left out. A token is learned if it holds a character of an answer; the end of sequence
    is learned too. The text is tokenised as a whole, as the model will see it. A token that reaches
    from the prompt into the answer is learned, because otherwise the start of the answer would
    never be learned. What a chat template writes after the end of a turn (a line break, an end of
    the whole conversation) is not: generation has stopped by then.
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
        self._turn_ends: dict[str, int | None] = {}
        self._waiting: list[tuple[int, Rendered]] = []
        self._bytes = 0
        # Flat from the start: two arrays of each row took 400 bytes, however short it was.
        self._ids, self._learned, self._lengths = bytearray(), bytearray(), array.array("q")

    def add(self, line: int, rendered: Rendered) -> None:
        """Take the text of one row; `line` is where it stands in its file."""
        text = rendered.text
        if len(text) > LONG:
            self._tokenise()
            try:
                self._take([(line, rendered)], self._of_long(rendered))
            except TokenizerFailure as failure:
                raise self._fails_on(line, failure) from failure
            return
        size = len(text) if text.isascii() else len(text.encode())
        if self._waiting and (
            len(self._waiting) >= _BATCH_ROWS
            or self._bytes + size > _BATCH_BYTES
            or self._waiting[0][1].add_special is not rendered.add_special
        ):
            self._tokenise()
        self._waiting.append((line, rendered))
        self._bytes += size

    def finish(self) -> TokenisedRows:
        """Return all rows, in the order in which they came."""
        self._tokenise()
        starts = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(self._lengths, out=starts[1:])
        ids, learned = np.frombuffer(self._ids, np.int32), np.frombuffer(self._learned, np.bool_)
        for fixed in (ids, learned, starts):
            fixed.flags.writeable = False
        return TokenisedRows(ids, learned, starts[:-1], starts[1:])

    def _tokenise(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        try:
            tokens = self._tokenizer.encode(
                [rendered.text for _, rendered in waiting], add_special=waiting[0][1].add_special
            )
        except TokenizerFailure as failure:
            raise self._fails_on(waiting[failure.index][0], failure) from failure
        self._take(waiting, tokens)

    def _fails_on(self, line: int, failure: TokenizerFailure) -> InvalidInputError:
        where = f"row {line} of {self._problems.file}"
        return invalid(self._tokenizer.name, f"its tokenizer fails on {where}: {failure.said}")

    def _of_long(self, rendered: Rendered) -> Tokens:
        """Return the tokens of a long text, up to where nothing more of it can be trained on."""
        found: list[Tokens] = []
        count = 0
        for piece in pieces(self._tokenizer, rendered.text):
            found.append(piece)
            behind = range(len(piece) - 1, max(0, self._max_tokens - count) - 1, -1)
            count += len(piece)
            # A row is cut if its last answer goes on. Whatever ends an answer (special tokens,
            # blanks) is behind the cut, too, where a token of text is.
            if rendered.spans[-1][1] > piece.ends[-1] and any(
                piece.ids[token] not in self._tokenizer.special_ids and not _blank(rendered, piece, token)
                for token in behind
            ):
                break
        return Tokens.joined(found, *(self._tokenizer.added if rendered.add_special else ()))

    def _take(self, batch: Sequence[tuple[int, Rendered]], tokens: Tokens) -> None:
        """Take the rows whose texts have these tokens, one row's after the other's."""
        learned = bytearray(len(tokens))
        held = held_tokens([rendered for _, rendered in batch], tokens)
        ids = tokens.ids.tobytes()
        known = max(int(tokens.ids.max(initial=0)), self._tokenizer.eos_id) < self._vocab_size
        end, n_front = 0, len(self._tokenizer.added[0])
        for (line, rendered), count in zip(batch, tokens.counts, strict=True):
            row = range(end, end := end + count)
            keep: int | None = None
            for span in rendered.spans:
                here = next(held)
                is_last = span is rendered.spans[-1]
                if here and here[0] - row.start >= self._max_tokens + n_front and not is_last:
                    continue
                after = self._after_turn(rendered, tokens, here)
                if after is not None:
                    here = here[: bisect_left(here, after)]
                    keep = after if is_last else keep
                for run in (here,) if isinstance(here, range) else (range(token, token + 1) for token in here):
                    learned[run.start : run.stop] = b"\1" * len(run)
            row = self._once(rendered, tokens.ids, row)
            self._append(line, ids, learned, row if keep is None else range(row.start, keep), keep is None, known)

    def _append(self, line: int, ids: bytes, learned: bytearray, row: range, is_open: bool, known: bool) -> None:
        """Keep the tokens `row` of a batch as a row; an open one gets the end of sequence."""
        eos = _INT32.pack(self._tokenizer.eos_id)
        more = is_open
        if is_open and len(row) and ids[4 * row.stop - 4 : 4 * row.stop] == eos:
            learned[row.stop - 1] = 1
            more = False
        its_ids, its_learned = ids[4 * row.start : 4 * row.stop], learned[row.start : row.stop]
        if more:
            its_ids, its_learned = its_ids + eos, its_learned + b"\1"
        if not self._answers_only:
            its_learned = bytearray(b"\1" * len(its_learned))
        its_learned[0] = 0
        if len(its_learned) > self._max_tokens:
            self.cut += 1
            its_ids, its_learned = its_ids[: 4 * self._max_tokens], its_learned[: self._max_tokens]
        if 1 not in its_learned:
            self.skipped += 1
            return
        if not known and (largest := int(np.frombuffer(its_ids, np.int32).max())) >= self._vocab_size:
            allowed = f"token ids must be below {self._vocab_size}, the base model's vocabulary"
            has = f"the tokenizer {self._tokenizer.name} has {self._tokenizer.vocab_size}"
            self._problems.add(line, "", f"token id {largest}", f"{allowed} ({has})")
            return
        self._ids += its_ids
        self._learned += its_learned
        self._lengths.append(len(its_learned))

    def _once(self, rendered: Rendered, ids: Numbers, row: range) -> range:
        """Return the tokens of a row's text; what the tokenizer adds is there once, not twice.

        A text may begin with the beginning of sequence that the tokenizer puts before every text.
        """
        if rendered.add_special:
            front, back = self._tokenizer.added
            if front and ids[row[len(front) : 2 * len(front)]].tolist() == [*front]:
                row = row[len(front) :]
            text = row[: len(row) - len(back)]
            if back and ids[text[-len(back) :]].tolist() == [*back]:
                row = text
        return row

    def _after_turn(self, rendered: Rendered, tokens: Tokens, held: Sequence[int]) -> int | None:
        """Return the token after the one that ends a turn whose tokens are `held`.

        The end is the chat template's own (or else the first) of the special tokens after which the
        turn has nothing but special tokens and blanks, with those that follow it at once. It is
        None where no token ends it.
        """
        eos = self._tokenizer.eos_id
        # A chat template has an end of turn of its own; any other text ends with the tokenizer's.
        special = frozenset((eos,)) if rendered.add_special else self._tokenizer.special_ids
        stops: list[int] = []
        for token in reversed(held):
            if int(tokens.ids[token]) in special:
                stops.append(token)
            elif not _blank(rendered, tokens, token):
                break
        if not stops:
            return None
        stops.reverse()
        turn_end = self._turn_end(rendered)
        first_stop = stop = next((token for token in stops if tokens.ids[token] == turn_end), stops[0])
        for token in stops:
            stop += token == stop + 1
        closing = rendered.closed and stop > first_stop and tokens.ids[stop] == eos
        return stop if closing else stop + 1

    def _turn_end(self, rendered: Rendered) -> int | None:
        """Return the first special token of what the chat template writes after a turn's text."""
        text = rendered.turn_end
        if text not in self._turn_ends:
            ids = self._tokenizer.encode([text], add_special=False).ids.tolist() if text else []
            self._turn_ends[text] = next((i for i in ids if i in self._tokenizer.special_ids), None)
        return self._turn_ends[text]


def _blank(rendered: Rendered, tokens: Tokens, token: int) -> bool:
    return not rendered.text[int(tokens.begins[token]) : int(tokens.ends[token])].strip()
