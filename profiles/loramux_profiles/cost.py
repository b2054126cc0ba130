"""This module is the one face of the cost models: it says what a job costs on a device type.

A cost holds under one fusion mode and one way to hold base copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Final

from loramux_profiles import memory, steptime
from loramux_profiles.cost_parts import ConstantParts
from loramux_profiles.curves import SpeedupCurve
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.fitted import FittedModel
from loramux_profiles.lengths import LengthDist, is_length_shape, length_dist
from loramux_profiles.memory import Copies, Fusion, Implementation
from loramux_profiles.rates import ExpectedStep, expected_step
from loramux_profiles.row_lengths import longest_admitted
from loramux_profiles.work import ADMISSION_QUANTILE, JobCost
from loramux_traces.arrays import Ints
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec

__all__ = ["Copies", "CostModel", "DoesNotFit", "ExpectedStep", "Fusion", "Implementation", "declared_micro_steps"]

_FIELDS: Final = (
    *(
        "base_model",
        "method",
        "batch_size",
        "seq_len",
        "rank",
        "target_modules",
        "num_experts",
        "top_k",
        "micro_batch_size",
    ),
    *("mem_bytes", "seq_len_p95", "length_dist", "dataset", "dtype", "recompute"),
)
_MEM: Final = _FIELDS.index("mem_bytes")
_DATASET: Final = _FIELDS.index("dataset")
_key: Callable[[JobSpec], tuple[Any, ...]] = attrgetter(*_FIELDS)
_key_dropout: Callable[[JobSpec], tuple[Any, ...]] = attrgetter(*_FIELDS, "dropout")


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    """Says that not even one row of the job fits the empty device."""

    need_bytes: int
    have_bytes: int


@dataclass(frozen=True, slots=True)
class _Class:
    """Holds the cost of a class of jobs and, where one row does not fit, what is missing."""

    cost: JobCost
    misfit: DoesNotFit | None


class CostModel:
    """Gives the costs of jobs on one device type.

    It is deterministic, and equal jobs get the same JobCost object.

    `ideal`: no overhead (loads, pauses), no memory but what the trace gives as `mem_bytes`,
    micro-batch = batch. `rates`: an aggregate-rate curve that replaces the fused step (None: fused
    steps; with separate copies the device's own curve of parallel processes). `folder`: where
    relative paths of models start (the trace's folder). `planned`: memory by the allocation plan of
    the packed runtime also where nothing was measured.

    A device with a fitted record (`devices.load_device` of one) costs jobs on its model by that
    record: measured times, and memory by the allocation plan of the packed runtime. Raises
    UsageError with another fusion.
    """

    def __init__(
        self,
        device: DeviceProfile,
        *,
        fusion: Fusion = "packed",
        copies: Copies = "shared",
        ideal: bool = False,
        rates: SpeedupCurve | None = None,
        implementation: Implementation | None = None,
        folder: str = "",
        planned: bool = False,
    ) -> None:
        self.device = device
        self.planned = planned and not ideal
        self.folder = folder
        self.fusion: Fusion = fusion
        self.copies: Copies = copies
        self.ideal = ideal
        self.rates = device.parallel_curve if rates is None and copies == "separate" else rates
        self.implementation = implementation or Implementation()
        self.fitted: FittedModel | None = None if ideal else device.fitted
        if self.fitted is not None and fusion != "packed":
            raise UsageError(
                f"the profile of {self.fitted.name} was measured packed: it knows nothing of {fusion} steps"
            )
        margin = device.memory_margin if self.fitted is None else self.fitted.margin
        self.upper_margin = 0.0 if ideal else float(margin)
        reserved = 0.0 if ideal else device.reserved_bytes
        self.capacity_bytes = max(0, int(device.memory_bytes - reserved))
        self._classes: dict[tuple[Any, ...], _Class] = {}
        self._costs: dict[tuple[Any, ...], JobCost] = {}
        self._parts = ConstantParts(
            device, self.implementation, fitted=self.fitted, ideal=ideal, planned=self.planned, folder=folder
        )
        by_dropout = self.implementation.stored_dropout or self.fitted is not None or self.planned
        self._key = _key_dropout if by_dropout else _key

    # -- one job

    def job_cost(self, spec: JobSpec) -> JobCost:
        """Return the constants of a job; this takes 1 us where its class is known.

        Where not even one row fits they are those of one row (ask `micro_batch`). Raises UsageError
        for an unknown base model or length distribution, InvalidInputError for a bad model
        configuration.
        """
        key = self._key(spec)
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = self._class(spec).cost
        return cost

    def micro_batch(self, spec: JobSpec) -> int | DoesNotFit:
        """Return the rows of a micro-batch: the largest start / 2^i that fits the empty device.

        The result is rounded down, and the upper bound says what fits. The start is
        `micro_batch_size` where the trace gives one, else the batch size. Returns DoesNotFit where
        not even one row fits.
        """
        known = self._class(spec)
        return known.cost.rows if known.misfit is None else known.misfit

    def cost_at(self, spec: JobSpec, progress: float) -> JobCost:
        """Return the cost at a point of the training (0 to 1).

        It differs from `job_cost` only for DynMoLE on the `skip` path.
        """
        if spec.method != "dynmole" or self.implementation.expert_path != "skip":
            return self.job_cost(spec)
        rows = self.job_cost(spec).rows
        return self._overridden(self._timed(self._build(spec, rows, progress)), spec)

    def step_s(self, jobs: Sequence[JobCost], lengths: Sequence[Ints]) -> tuple[float, int]:
        """Return (seconds, tokens computed) of one fused step with these real lengths.

        This is the reference implementation.
        """
        return steptime.step_of_lengths(jobs, lengths, self.fusion)

    def expected_step(self, jobs: Sequence[JobCost], seeds: Sequence[int] | None = None) -> ExpectedStep:
        """Return the expected fused step of a set of jobs of one base.

        See `rates.expected_step`.
        """
        return expected_step(jobs, self.fusion, seeds)

    # -- memory of a set

    def upper_bytes(self, jobs: Sequence[JobCost]) -> float:
        """Return the upper bound of the memory of a set at its admission quantiles.

        This is the reference implementation.
        """
        return memory.set_bytes(jobs, self.fusion, self.copies, self.upper_margin)

    def expected_bytes(self, jobs: Sequence[JobCost]) -> float:
        """Return the memory of a set without the margin of the upper bound."""
        return memory.set_bytes(jobs, self.fusion, self.copies)

    # -- building

    def _class(self, spec: JobSpec) -> _Class:
        key = list(self._key(spec))
        mem_bytes, key[_MEM] = key[_MEM], None
        if spec.length_dist is not None or spec.seq_len_p95 is not None or not is_length_shape(spec.dataset):
            # the label of a data set that says nothing of lengths makes no class of its own
            key[_DATASET] = ""
        # An override frees the micro-batch from memory, but all values share the part of the cost
        # that is expensive to build.
        wanted = (*key, mem_bytes is not None)
        known = self._classes.get(wanted)
        if known is None:
            known = self._classes[wanted] = self._largest_fitting(spec)
        if mem_bytes is None:
            return known
        full = (*key, "mem_bytes", mem_bytes)
        own = self._classes.get(full)
        if own is None:
            cost = self._overridden(known.cost, spec)
            misfit = DoesNotFit(mem_bytes, self.capacity_bytes) if mem_bytes > self.capacity_bytes else None
            own = self._classes[full] = _Class(cost, misfit)
        return own

    def _largest_fitting(self, spec: JobSpec) -> _Class:
        rows = spec.micro_batch_size or spec.batch_size
        cost = self._build(spec, rows)
        if self.ideal or spec.mem_bytes is not None:
            return _Class(self._timed(cost), None)
        misfit = None
        while (need := self.upper_bytes((cost,))) > self.capacity_bytes:
            if rows == 1:
                misfit = DoesNotFit(int(need), self.capacity_bytes)
                break
            rows >>= 1
            cost = self._build(spec, rows)
        return _Class(self._timed(cost), misfit)

    def _timed(self, cost: JobCost) -> JobCost:
        """Set the solo step of a cost in place, while nobody else has the object.

        A copy would have tables of lengths of its own (they are cached by identity), which is a
        third of the price of a new class.
        """
        object.__setattr__(cost, "solo_step_s", expected_step((cost,), self.fusion).seconds)
        return cost

    def _overridden(self, cost: JobCost, spec: JobSpec) -> JobCost:
        return cost if spec.mem_bytes is None else replace(cost, own_bytes=spec.mem_bytes, overridden=True)

    def _lengths(self, spec: JobSpec) -> LengthDist:
        name = spec.length_dist
        if name is None and spec.seq_len_p95 is None and is_length_shape(spec.dataset):
            name = spec.dataset
        return length_dist(spec.seq_len, spec.seq_len_p95, name)

    def _build(self, spec: JobSpec, rows: int, progress: float | None = None) -> JobCost:
        parts = self._parts.of(spec, progress)
        lengths = self._lengths(spec)
        length_q = longest_admitted(lengths, rows)
        if not self.ideal and spec.mem_bytes is None:
            # Admission vouches for rows up to length_q and no longer: a longer row may fit no
            # device at all, however often it is tried again. So length_q is the maximum length that
            # the job trains with, in draws and in rates.
            lengths = lengths.cut(length_q)
        if self.fusion == "padded":
            tokens_q = rows * memory.round_up(length_q)
            squares_q = float(tokens_q) * memory.round_up(length_q)
        else:
            tokens_q = memory.round_up(lengths.sum_quantile(rows, ADMISSION_QUANTILE))
            squares_q = float(tokens_q) * length_q  # no row is longer than length_q
        accumulation = spec.batch_size / rows
        return JobCost(
            base=parts.base,
            method=spec.method if spec.target_modules == "all-linear" else f"{spec.method}:{spec.target_modules}",
            rows=rows,
            accumulation=accumulation,
            lengths=lengths,
            length_q=length_q,
            tokens_q=float(tokens_q),
            squares_q=squares_q,
            own_bytes=parts.own_bytes,
            state_bytes=parts.state_bytes,
            token_bytes=parts.token_bytes,
            square_bytes=parts.square_bytes,
            row_bytes=parts.row_bytes,
            overridden=False,
            token_s=parts.token_s + parts.label_s,
            square_s=parts.square_s,
            step_s=parts.optimizer_s / accumulation + parts.job_s + rows * (parts.row_s - parts.label_s),
            method_floor_s=parts.method_floor_s,
            solo_step_s=0.0,
            load_s=parts.load_s,
            pause_s=parts.pause_s,
            real_tokens=rows * lengths.mean,
            adapter=parts.adapter,
            recompute=spec.recompute,
        )


def declared_micro_steps(spec: JobSpec, cost: JobCost, reference: JobCost | None = None) -> float:
    """Return how many micro-batches of `cost.rows` rows the job is long.

    It is the declared steps times the accumulation. Where the trace gives `duration_s` instead, it
    is as many as take that long alone on the reference device, whose cost is `reference` (None:
    this one). There n * solo_step_s = duration_s to rounding (1e-15). Raises ValueError for a job
    with neither.
    """
    if spec.duration_s is None:
        steps = spec.steps
        if steps is not None:
            return steps * cost.accumulation
        raise ValueError(f"{spec.job_id}: neither steps nor a duration")
    on = cost if reference is None else reference
    micro = spec.duration_s / on.solo_step_s
    return micro if on.rows == cost.rows else micro * on.rows / cost.rows
