"""This module estimates the memory of a fused step without the device.

It runs the real step on fake tensors, or uses the allocation plan alone. Everything here is an
estimate for a device that may not be at hand: weights, states and the step's own peak, plus the
margin of the device's profile. Importing this needs no torch; nor does an estimate by the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from loramux_profiles.cost import CostModel, DoesNotFit
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.memory import STATE_BYTES
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_plan.structure import stored_params
from loramux_profiles.step_point import JobPoint, StepPoint
from loramux_profiles.work import JobCost
from loramux_runtime.profiler.peaks import FakePeaks
from loramux_runtime.profiler.subjects import Base, Subjects
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec

SHARES: Final = {"adapter_bytes": 4, "gradient_bytes": 4, "moment_bytes": 8}
"""Bytes per parameter; together they are STATE_BYTES."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """Describes one job of the step.

    Fields with `alone` are for the job as the only one on the device, by the plan.
    """

    job_id: str
    method: str
    rank: int
    adapter_bytes: int
    gradient_bytes: int
    moment_bytes: int
    own_bytes: int
    micro_batch: int
    asked: int
    """Rows that the file asks for (its batch, where no micro-batch is given)."""
    tokens: int
    """Tokens of the micro-batch, as admission reckons."""
    mean_tokens: int
    alone_expected_bytes: int
    alone_upper_bytes: int
    alone_fits: bool
    never: bool
    """Whether not one row fits, not even with recompute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Describes the fused step, all of it in bytes."""

    tokens: int
    weight_bytes: int
    context_bytes: int
    state_bytes: int
    dynamic_bytes: int
    expected_bytes: int
    upper_bytes: int
    plan_dynamic_bytes: int
    plan_wall_s: float
    plan_difference: float | None
    """Share by which the plan's dynamic part is off the fake run's; None where nothing was run."""
    cached: bool | None
    """Whether the fake run was found on disk; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Holds everything that `loramux estimate` says."""

    device: str
    model: str
    dtype: str
    recompute: bool
    method: str
    """How the estimate was made: fake-tensor run, or allocation plan."""
    margin: float
    memory_origin: str
    """Origin of the margin and the scale: fitted, or assumed."""
    lengths: str
    capacity_bytes: int
    jobs: tuple[JobLine, ...]
    admitted: Figure
    """The step with micro-batches at the admission quantile of their lengths.

    This is what a scheduler reckons with.
    """
    mean: Figure
    """The step with micro-batches of mean length."""
    separate_bytes: int
    """Expected bytes of one process per job, all at once, by the plan."""
    notes: tuple[str, ...]

    @property
    def missing_bytes(self) -> int:
        """Return the bytes that the upper bound exceeds the device by; 0 where it fits."""
        return max(0, self.admitted.upper_bytes - self.capacity_bytes)

    @property
    def saved_bytes(self) -> int:
        """Return the bytes saved by fusing, against separate processes; both by the plan."""
        fused = self.admitted
        return self.separate_bytes - (fused.expected_bytes - fused.dynamic_bytes + fused.plan_dynamic_bytes)

    @property
    def never(self) -> tuple[str, ...]:
        """Return the jobs that can never run here."""
        return tuple(job.job_id for job in self.jobs if job.never)

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON holds it."""
        return {
            **asdict(self),
            "estimated": True,
            "fits": self.missing_bytes == 0,
            "missing_bytes": self.missing_bytes,
            "saved_bytes": self.saved_bytes,
            "never_fit": list(self.never),
        }


def fake_peaks(
    base: Base, *, dtype: str, exact: bool, folder: Path | None = None, tell: Callable[[str], None] = lambda _: None
) -> FakePeaks:
    """Return the peaks of a base on fake tensors."""
    model = {"config": base.config} if base.config is not None else {"shape": asdict(replace(base.shape, source=""))}
    return FakePeaks(
        model,
        lambda: _configuration(base),
        dtype="fp32" if dtype == "fp32" else "bf16",
        exact=exact,
        folder=folder,
        tell=tell,
    )


def _configuration(base: Base) -> Any:
    from loramux_runtime.fused.base_model import shape_config

    if base.config is None:
        return shape_config(base.shape.name)
    from transformers import AutoConfig

    values = dict(base.config)
    kind = values.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{base.label}: {str(error)[:200]}") from error


def runs_exact(device: DeviceProfile) -> bool:
    """Return whether the runtime runs in exact mode on this device."""
    return device.fitted.exact if device.fitted is not None else device.name == "cpu"


def estimate(
    device: DeviceProfile,
    subjects: Subjects,
    *,
    cache: Path | None = None,
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Estimate:
    """Estimate the memory of the jobs' fused step.

    `quick`: by the allocation plan alone. Raises UsageError for several bases or types, which are
    no one step.
    """
    specs, base = subjects.specs, subjects.base
    dtypes = sorted({spec.dtype for spec in specs})
    if base is None:
        names = ", ".join(sorted({spec.base_model for spec in specs})[:4])
        raise UsageError(f"the jobs have several base models ({names}), which is no one step: name one with --model")
    if len(dtypes) > 1:
        raise UsageError(f"the jobs have weights in {' and '.join(dtypes)}, which is no one step: give --dtype")
    recompute = any(spec.recompute for spec in specs)
    specs = tuple(replace(spec, recompute=recompute, mem_bytes=None) for spec in specs)
    model = CostModel(device, planned=True, folder=subjects.folder)
    costs = [_cost(model, subjects, spec, base.shape) for spec in specs]
    planned = costs[0].base.planned
    assert planned is not None, "asked for by planned=True"
    exact = runs_exact(device)
    peaks = None if quick else fake_peaks(base, dtype=dtypes[0], exact=exact, folder=cache, tell=tell)
    admitted = [planned.admitted_point((cost,)).jobs[0] for cost in costs]
    mean = [_mean_point(cost) for cost in costs]
    lines = tuple(
        _line(model, spec, cost, own, usual)
        for spec, cost, own, usual in zip(specs, costs, admitted, mean, strict=True)
    )
    notes = list(subjects.notes)
    notes += [
        f"{line.job_id}: a micro-batch of {line.micro_batch} of {line.asked} rows is the largest half that fits alone"
        for line in lines
        if line.micro_batch < line.asked and line.alone_fits
    ]
    if model.fitted is None:
        notes.append(f"nothing was measured on {device.name}: the margin of {model.upper_margin:.0%} is assumed")
    elif sum(job.tokens for job in admitted) > model.fitted.trusted_tokens:
        notes.append(f"the step is larger than any that was measured ({model.fitted.trusted_tokens:,.0f} tokens)")
    return Estimate(
        device=device.name,
        model=base.label,
        dtype=dtypes[0],
        recompute=recompute,
        method="allocation plan" if quick else "fake-tensor run of the step",
        margin=model.upper_margin,
        memory_origin="fitted" if model.fitted is not None else "assumed",
        lengths=subjects.lengths,
        capacity_bytes=model.capacity_bytes,
        jobs=lines,
        admitted=_figure(model, planned, costs, StepPoint(jobs=tuple(admitted), recompute=recompute), peaks),
        mean=_figure(model, planned, costs, StepPoint(jobs=tuple(mean), recompute=recompute), peaks),
        separate_bytes=sum(line.alone_expected_bytes for line in lines),
        notes=tuple(notes),
    )


def _cost(model: CostModel, subjects: Subjects, spec: JobSpec, shape: ModelShape) -> JobCost:
    cost = model.job_cost(spec)
    adapter = subjects.adapter(spec)
    if adapter == cost.adapter:
        return cost
    try:
        own = STATE_BYTES * stored_params(shape, adapter)
        return replace(cost, adapter=adapter, own_bytes=own, state_bytes=own)
    except ValueError as error:
        raise UsageError(f"job {spec.job_id}: {error}") from error


def _mean_point(cost: JobCost) -> JobPoint:
    assert cost.adapter is not None
    lengths = (max(1, round(cost.lengths.mean)),) * cost.rows
    return JobPoint(adapter=cost.adapter, lengths=lengths, labels=sum(lengths) - len(lengths))


def _line(model: CostModel, spec: JobSpec, cost: JobCost, admitted: JobPoint, mean: JobPoint) -> JobLine:
    upper = model.upper_bytes((cost,))
    with_recompute = replace(spec, recompute=True)
    never = upper > model.capacity_bytes and isinstance(model.micro_batch(with_recompute), DoesNotFit)
    parameters = cost.own_bytes // STATE_BYTES
    return JobLine(
        job_id=spec.job_id,
        method=spec.method,
        rank=spec.rank,
        **{name: share * parameters for name, share in SHARES.items()},
        own_bytes=cost.own_bytes,
        micro_batch=cost.rows,
        asked=spec.micro_batch_size or spec.batch_size,
        tokens=admitted.tokens,
        mean_tokens=mean.tokens,
        alone_expected_bytes=int(model.expected_bytes((cost,))),
        alone_upper_bytes=int(upper),
        alone_fits=upper <= model.capacity_bytes,
        never=never,
    )


def _figure(
    model: CostModel, planned: PlannedMemory, costs: list[JobCost], point: StepPoint, peaks: FakePeaks | None
) -> Figure:
    begin = time.perf_counter()
    plan = planned.point_bytes(point)
    wall = time.perf_counter() - begin
    base = costs[0].base
    weights, state, dynamic = base.weights_bytes, sum(cost.own_bytes for cost in costs), plan
    difference = cached = None
    if peaks is not None:
        peak = peaks.peak(point)
        weights, state = peak.weights, peak.state
        dynamic = planned.scale * peak.dynamic + planned.offset_bytes
        difference, cached = plan / dynamic - 1, peak.cached
    fixed = weights + base.context_bytes + state
    return Figure(
        tokens=point.tokens,
        weight_bytes=weights,
        context_bytes=base.context_bytes,
        state_bytes=state,
        dynamic_bytes=int(dynamic),
        expected_bytes=int(fixed + dynamic),
        upper_bytes=int(fixed + (1 + model.upper_margin) * dynamic),
        plan_dynamic_bytes=int(plan),
        plan_wall_s=wall,
        plan_difference=difference,
        cached=cached,
    )
