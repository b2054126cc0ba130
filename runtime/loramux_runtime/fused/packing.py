"""A step layout is one fused step as data: the micro-batches of its jobs in one packed row.

The row is never padded but for its last few tokens.

Everything that depends on the layout is worked out here, on the host, once per step: segments,
positions, keys of the dropout masks, rows with a label. The kernels only ever see row ranges and
offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loramux_profiles.work import ROUNDING
from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.groups import JobGroup, Segment, group_by_structure
from loramux_runtime.fused.kernels.dropout import row_keys
from loramux_runtime.fused.kernels.loss import LossRows
from loramux_runtime.fused.labels import IGNORED
from loramux_traces.arrays import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A micro-batch holds rows of one job for one fused step."""

    tokens: tuple[Ints, ...]
    """One array of token ids per row."""
    labels: tuple[Ints, ...]
    """Labels of the same lengths; `IGNORED` where nothing is learned.

    `labels[t]` is what should be predicted at t - 1.
    """
    samples: tuple[int, ...]
    """Index of each row in the job's stream of samples: the key of its dropout masks."""
    step: int = 0
    """Optimizer step, from 0."""
    window_labels: int | None = None
    """Labels in the whole accumulation window, which the loss is divided by.

    None: this micro-batch is the window.
    """
    window_share: float = 1.0
    """Share of the window's tokens in this micro-batch; its auxiliary losses are weighted by it."""

    def __post_init__(self) -> None:
        if not self.tokens or not len(self.tokens) == len(self.labels) == len(self.samples):
            raise ValueError("a micro-batch needs as many labels and sample numbers as rows, and at least one row")
        for tokens, labels in zip(self.tokens, self.labels, strict=True):
            if len(tokens) == 0 or len(tokens) != len(labels):
                raise ValueError("a row needs at least one token, and a label for each")

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all rows."""
        return sum(map(len, self.tokens))

    @property
    def n_labels(self) -> int:
        """The number of positions that are learned (a row's first token is never predicted)."""
        return sum(int(np.count_nonzero(labels[1:] != IGNORED)) for labels in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part is one job's share of a fused step."""

    adapter: Adapter
    batch: MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """A step layout is a packed step on the device.

    `parts`, `segments` and `loss.bounds` are in packed order.
    """

    parts: tuple[Part, ...]
    segments: tuple[Segment, ...]
    groups: tuple[JobGroup, ...]
    n_tokens: int
    """Real tokens, without the rounding rows."""
    width: int
    """Tokens with the rounding rows."""
    input_ids: Tensor
    """[1, width] int64."""
    positions: Tensor
    """[1, width] int64: position within the sequence."""
    sequences: tuple[tuple[int, int], ...]
    """Range of every sequence, on the host."""
    cu_seqlens: Tensor
    """[sequences + 1] int32, on the device."""
    longest: int
    dropout_rows: Tensor
    """[width] int32: the row half of the dropout keys."""
    loss: LossRows
    slices: tuple[tuple[int, int], ...]
    """Rows that one frozen GEMM may take at a time: in exact mode one job's each, else all."""
    exact: bool


def build_layout(
    parts: Sequence[Part], *, device: torch.device | str, compute_dtype: torch.dtype, exact: bool, training: bool = True
) -> StepLayout:
    """Pack the parts into the layout of one step.

    Jobs of one structure stand together, those with expert blocks last.
    """
    if len({part.adapter.job_id for part in parts}) != len(parts):
        raise ValueError("a job takes part in a step at most once")
    ordered = sorted(parts, key=lambda part: (part.adapter.method.has_block, repr(part.adapter.structure)))
    segments: list[Segment] = []
    sequences: list[tuple[int, int]] = []
    ids, positions, keys, index, targets, bounds, weights = [], [], [], [], [], [], []
    at = 0
    for part in ordered:
        start = at
        batch = part.batch
        for tokens, labels in zip(batch.tokens, batch.labels, strict=True):
            sequences.append((at, at + len(tokens)))
            ids.append(tokens)
            positions.append(np.arange(len(tokens)))
            learned = np.flatnonzero(labels[1:] != IGNORED)
            index.append(learned + at)
            targets.append(labels[1:][learned])
            at += len(tokens)
        samples = np.repeat(np.asarray(batch.samples, dtype=np.int64), [len(t) for t in batch.tokens])
        own = np.concatenate(positions[-len(batch.tokens) :])
        keys.append(row_keys(part.adapter.seed, batch.step, samples, own))
        bounds.append(sum(map(len, index)))
        weights.append(1.0 / max(1, batch.n_labels if batch.window_labels is None else batch.window_labels))
        segments.append(Segment(start, at))
    # The rest is for rounding; it belongs to no job, no sequence and no statistic
    width = -(-at // ROUNDING) * ROUNDING
    rest = width - at
    pad = np.zeros(rest, dtype=np.int64)

    def tensor(arrays: Sequence[Ints], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(arrays))).to(dtype).to(device, non_blocking=True)

    dropout_rows = tensor([*(key.astype(np.int64) for key in keys), pad], torch.int32)
    limits = np.asarray([0, *(end for _, end in sequences)])
    groups = group_by_structure(
        [part.adapter for part in ordered],
        segments,
        [part.batch.window_share for part in ordered],
        dropout_rows=dropout_rows,
        compute_dtype=compute_dtype,
        exact=exact,
        training=training,
    )
    return StepLayout(
        parts=tuple(ordered),
        segments=tuple(segments),
        groups=groups,
        n_tokens=at,
        width=width,
        input_ids=tensor([*ids, pad]).unsqueeze(0),
        positions=tensor([*positions, np.arange(rest)]).unsqueeze(0),
        sequences=tuple(sequences),
        cu_seqlens=tensor([limits], torch.int32),
        longest=max(end - start for start, end in sequences),
        dropout_rows=dropout_rows,
        loss=LossRows(index=tensor(index), target=tensor(targets), bounds=tuple(bounds), weights=tuple(weights)),
        slices=tuple((s.start, s.end) for s in segments) if exact else ((0, width),),
        exact=exact,
    )
