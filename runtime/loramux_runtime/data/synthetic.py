"""This module makes rows without a file, for replaying a trace.

Their tokens mean nothing, and the rows are as long as those that the simulator draws for the same
job. A trace says how long a job's rows are and nothing of what is in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from loramux_profiles.datafiles import unknown
from loramux_profiles.lengths import NAMES, LengthDist, length_dist
from loramux_profiles.row_lengths import BLOCK, draw_block, longest_admitted
from loramux_profiles.streams import stream_seed
from loramux_runtime.fused.labels import IGNORED
from loramux_traces.arrays import Ints
from loramux_traces.job_types import ReadNumber

_Words = np.ndarray[Any, np.dtype[np.uint64]]
_KEPT: Final = 2
"""Blocks of lengths in use at once: a step may reach over the end of one."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class SyntheticConfig(BaseModel):
    """Says how long the rows are, in the words of a trace (`loramux_traces.job.JobSpec`).

    Raises pydantic's ValidationError for unknown keys and values out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq_len: Annotated[float, Field(ge=1, le=1_048_576, allow_inf_nan=False), ReadNumber]
    """Mean tokens of a row."""
    seq_len_p95: Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False), ReadNumber] | None = None
    length_dist: str | None = None
    """Named shape of the length distribution (`loramux_profiles.lengths`)."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """Seed of lengths and tokens; the simulated run with this seed has the same rows."""

    @field_validator("length_dist")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in NAMES:
            raise ValueError(str(unknown("length distribution", name, list(NAMES))))
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.seq_len_p95 is not None and self.seq_len_p95 < self.seq_len:
            raise ValueError("seq_len_p95 must be at least seq_len (the mean)")
        return self


class SyntheticData(BaseModel):
    """Holds what a jobs file says for a job without data of its own.

    An example is `data: {synthetic: {seq_len: 64}}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    synthetic: SyntheticConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticReport:
    """Holds what a run says of the data."""

    rows: int
    seq_len: float

    def __str__(self) -> str:
        return f"{self.rows} synthetic rows, {self.seq_len:g} tokens in the mean"


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticRows:
    """Makes a job's rows when they are asked for: (tokens, labels) as `TokenisedRows` has them.

    Nothing is kept but two blocks of lengths. Row i has the length that the simulator draws for row
    i of this job under seed `config.seed`, given the same `micro_batch`, which is the rows of a
    micro-batch that the loop has found to fit the device alone (`JobCost.rows`). `bind` sets it
    once the loop knows; until then it is the one that the job asks for. It must stay what it was
    when the job began, also over a restart (`sha256` tells). Where memory later makes the scheduler
    split a micro-batch, its rows keep their lengths, in the simulator as here; a half may then hold
    a row longer than the half's own admission quantile, which `fuse` checks. Every token is learned
    but a row's first.
    """

    config: SyntheticConfig
    job_id: str
    rows: int
    """Number of rows: as many as the job trains on."""
    micro_batch: int
    vocab_size: int
    _dist: LengthDist = field(init=False, repr=False)
    _key: np.uint64 = field(init=False, repr=False)
    _blocks: dict[int, Ints] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.micro_batch < 1 or self.vocab_size < 1:
            raise ValueError("rows, micro_batch and vocab_size must be at least 1")
        wanted = length_dist(self.config.seq_len, self.config.seq_len_p95, self.config.length_dist)
        object.__setattr__(self, "_dist", wanted.cut(longest_admitted(wanted, self.micro_batch)))
        object.__setattr__(self, "_key", np.uint64(stream_seed(self.config.seed, self.job_id, "tokens")))

    def bind(self, micro_batch: int) -> SyntheticRows:
        """Return the rows of a job whose micro-batches have `micro_batch` rows."""
        return self if micro_batch == self.micro_batch else replace(self, micro_batch=micro_batch)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Ints, Ints]:
        tokens = self._tokens(row, self.length(row))
        labels = tokens.copy()
        labels[0] = IGNORED
        return tokens, labels

    def __iter__(self) -> Iterator[tuple[Ints, Ints]]:
        return (self[row] for row in range(len(self)))

    def length(self, row: int) -> int:
        """Return the number of tokens of a row."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        block, within = divmod(row, BLOCK * self.micro_batch)
        return int(self._block(block)[within])

    @property
    def lengths(self) -> Ints:
        """Return the number of tokens of each row, [rows].

        They are of all rows: eight bytes a row, made anew at every call.
        """
        blocks = -(-self.rows // (BLOCK * self.micro_batch))
        return np.concatenate([self._draw(block) for block in range(blocks)])[: self.rows]

    @property
    def starts(self) -> Ints:
        """Return the number of tokens before each row, and of all, [rows + 1].

        It costs as much as `lengths`.
        """
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of all rows."""
        return int(self.lengths.sum())

    @property
    def n_labels(self) -> int:
        """Return the number of learned tokens of all rows."""
        return self.n_tokens - self.rows

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of all that the content follows from.

        A resumed job must find the data it left.
        """
        text = f"{self.config.model_dump_json()}|{self.job_id}|{self.rows}|{self.micro_batch}|{self.vocab_size}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _block(self, block: int) -> Ints:
        blocks = self._blocks
        found = blocks.get(block)
        if found is None:
            while len(blocks) >= _KEPT:
                del blocks[next(iter(blocks))]
            found = blocks[block] = self._draw(block)
        return found

    def _draw(self, block: int) -> Ints:
        return draw_block(self.config.seed, self.job_id, self._dist, self.micro_batch, block).reshape(-1)

    def _tokens(self, row: int, length: int) -> Ints:
        """Return a row's tokens by SplitMix64 of the row's own counter.

        Any row can be made at any time, with the same bits on every machine.
        """
        # array operations wrap around silently, which is what the generator means
        at: _Words = np.arange(1, length + 1, dtype=np.uint64) + np.asarray([row << 32], dtype=np.uint64)
        words: _Words = at * _GOLDEN + self._key
        for shift, factor in _MIX:
            words = (words ^ (words >> shift)) * factor
        words ^= words >> np.uint64(31)
        return (words % np.uint64(self.vocab_size)).astype(np.int64)
