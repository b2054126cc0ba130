"""Jobs of one step whose adapters have the same structure share every grouped GEMM.

In exact mode each job is a group of its own: everything that is computed for a group is then
computed on one job's rows with plain GEMMs, so no bit depends on a peer, nothing is stacked, and
(CPU) a job's rows stay in the cache between operations. Frozen GEMMs, attention and loss go by
rows, so groups make no difference to them.

A group owns the stacked compute copies of its jobs' parameters (in the compute dtype, one group of
a grouped GEMM per job), and hands gradients back to each job's own buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.kernels.dropout import DropKey, site_key, threshold


class Segment(NamedTuple):
    """A segment is the rows [start, end) of the packed step."""

    start: int
    end: int


class JobGroup:
    """A group holds adapters of equal structure in one step.

    The rows of the group are [start, end) of the packed row.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        segments: Sequence[Segment],
        shares: Sequence[float],
        *,
        index: int,
        dropout_rows: Tensor,
        compute_dtype: torch.dtype,
        exact: bool,
        training: bool,
    ) -> None:
        self.index, self.training = index, training
        self.adapters = tuple(adapters)
        self.segments = tuple(segments)
        self.shares = tuple(shares)
        """Per job: share of its accumulation window's tokens in this step."""
        self.start, self.end = segments[0].start, segments[-1].end
        self.device, self.compute_dtype, self.exact = dropout_rows.device, compute_dtype, exact
        self.method = adapters[0].method
        self.config = adapters[0].config
        """The configuration of the first job.

        Structure is common to all jobs, scales and dropout are not.
        """
        self.sizes = [s.end - s.start for s in segments]
        self.slices = tuple((s.start - self.start, s.end - self.start) for s in segments)
        """Each job's rows within the group."""
        self.offs = self.put([end for _, end in self.slices], torch.int32)
        self.dropout_rows = dropout_rows[self.start : self.end]
        self._columns: dict[tuple[object, ...], Tensor] = {}
        self._alone: dict[int, JobGroup] = {}
        self._within: tuple[JobGroup, int] | None = None
        """The group that this is one job of, and which: its compute copies are that group's."""

    @property
    def n_rows(self) -> int:
        """The number of tokens of the group."""
        return self.end - self.start

    def alone(self, adapter: Adapter) -> JobGroup:
        """Return the group of one of its jobs, with rows counted from 0."""
        i = self.adapters.index(adapter)
        # One per step, not one per linear: in bf16 each would copy the whole adapter
        known = self._alone.get(i)
        if known is not None:
            return known
        start, end = self.slices[i]
        one = self._alone[i] = JobGroup(
            [adapter],
            [Segment(0, end - start)],
            self.shares[i : i + 1],
            index=self.index,
            dropout_rows=self.dropout_rows[start:end],
            compute_dtype=self.compute_dtype,
            exact=self.exact,
            training=self.training,
        )
        one._within = (self, i)
        return one

    def put(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return host numbers as a tensor on the device, without waiting for it.

        `torch.tensor(device=...)` would wait.
        """
        return torch.tensor(values, dtype=dtype).to(self.device, non_blocking=True)

    def sizes_column(self, dtype: torch.dtype) -> Tensor:
        """Return the number of each job's tokens, [jobs, 1]."""
        return self.put(self.sizes, dtype).unsqueeze(1)

    @cached_property
    def job_of_row(self) -> Tensor:
        """The index of each row's job within the group, [n_rows] int64."""
        return (
            torch.arange(len(self.sizes))
            .repeat_interleave(torch.tensor(self.sizes), output_size=self.n_rows)
            .to(self.device, non_blocking=True)
        )

    def stack(self, key: str) -> Tensor:
        """Return the jobs' parameters `key` as [jobs, *shape] in the compute dtype.

        For one job in that dtype there is no copy.
        """
        if len(self.adapters) == 1 and self.adapters[0].slab.params.dtype == self.compute_dtype:
            return self.adapters[0].slab.param(key).unsqueeze(0)
        if self._within is not None:
            group, i = self._within
            return group.stack(key)[i : i + 1]
        return self._compute_copies[key]

    @cached_property
    def _compute_copies(self) -> dict[str, Tensor]:
        """All parameters, key by key with the jobs side by side, in the compute dtype.

        They are in one buffer that one operation fills and casts.
        """
        layout = self.adapters[0].slab.layout
        jobs = len(self.adapters)
        flat = torch.empty(layout.size * jobs, dtype=self.compute_dtype, device=self.device)
        copies: dict[str, Tensor] = {}
        for key, offset in layout.offsets.items():
            shape = layout.shapes[key]
            copies[key] = flat[offset * jobs :][: math.prod(shape) * jobs].view(jobs, *shape)
        torch._foreach_copy_(
            [copy[j] for copy in copies.values() for j in range(jobs)],
            [adapter.slab.param(key) for key in copies for adapter in self.adapters],
        )
        return copies

    def add_grad(self, key: str, grads: Tensor) -> None:
        """Add [jobs, *shape] to the gradients of the jobs' parameters `key`."""
        slabs = [adapter.slab.grad(key) for adapter in self.adapters]
        if len(slabs) == 1:
            slabs[0].add_(grads[0])
        else:
            # With equal strides this is one launch
            wide = grads.to(slabs[0].dtype, memory_format=torch.contiguous_format)
            torch._foreach_add_(slabs, list(wide.unbind(0)))

    def column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return one value per job as a column [n_rows, 1], or [1, 1] where all are equal."""
        key = (dtype, *values)
        column = self._columns.get(key)
        if column is None:
            column = torch.tensor(values, dtype=dtype).unsqueeze(1)
            if len(set(values)) == 1:
                column = column[:1]
            else:
                column = column.repeat_interleave(torch.tensor(self.sizes), 0, output_size=self.n_rows)
            column = self._columns[key] = column.to(self.device, non_blocking=True)
        return column

    def drop_key(self, rates: Sequence[float], layer: int, projection: str) -> DropKey | None:
        """Return the key of a site's masks, or None where no job of the group drops anything."""
        if not any(rates):
            return None
        limit = self.column([threshold(p) for p in rates], torch.int32)
        return DropKey(self.dropout_rows, site_key(layer, projection), limit)


def group_by_structure(
    adapters: Sequence[Adapter],
    segments: Sequence[Segment],
    shares: Sequence[float],
    *,
    dropout_rows: Tensor,
    compute_dtype: torch.dtype,
    exact: bool,
    training: bool,
) -> tuple[JobGroup, ...]:
    """Return one group for each run of adapters with equal structure.

    The adapters are sorted by structure. In exact mode there is one group per job.
    """
    groups: list[JobGroup] = []
    start = 0
    for i in range(1, len(adapters) + 1):
        if exact or i == len(adapters) or adapters[i].structure != adapters[start].structure:
            groups.append(
                JobGroup(
                    adapters[start:i],
                    segments[start:i],
                    shares[start:i],
                    index=len(groups),
                    dropout_rows=dropout_rows,
                    compute_dtype=compute_dtype,
                    exact=exact,
                    training=training,
                )
            )
            start = i
    return tuple(groups)
