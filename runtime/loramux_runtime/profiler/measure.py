"""This module measures one block of steps: the peak of each, then their times in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.step import PointStep, measure_peak


@dataclass(slots=True, kw_only=True)
class Measured:
    """Holds what is known of one point, in bytes and seconds."""

    point: StepPoint
    memory: dict[str, Any] = field(default_factory=dict)
    """`dynamic`, `state`, `total` (CUDA: also `allocated`, `reserved`, `context`).

    A point that ran out of memory has `censored` with `known` instead.
    """
    samples: list[float] = field(default_factory=list)
    active_experts: list[float | None] | None = None
    """Mean experts per token by job, where a method's routing decides it."""
    anchor_s: float | None = None
    """Median seconds of the reference step (`ANCHOR`), timed in turn with it.

    It tells how fast the machine was.
    """

    @property
    def censored(self) -> bool:
        """Return whether the step ran out of memory."""
        return bool(self.memory.get("censored"))

    @property
    def median_s(self) -> float:
        """Return the median seconds of the samples."""
        return statistics.median(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Return the point as journal and record hold it."""
        found: dict[str, Any] = {"step": self.point.to_dict(), "memory": self.memory}
        if self.samples:
            low, high = min(self.samples), max(self.samples)
            found["time"] = {"samples": self.samples, "median": self.median_s, "spread": (high - low) / self.median_s}
            if self.anchor_s is not None:
                found["time"]["anchor"] = self.anchor_s
        if self.active_experts is not None:
            found["active_experts"] = self.active_experts
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measured:
        """Return the point that `to_dict` gave as this data."""
        return cls(
            point=StepPoint.from_dict(data["step"]),
            memory=dict(data["memory"]),
            samples=list(data.get("time", {}).get("samples", ())),
            active_experts=data.get("active_experts"),
            anchor_s=data.get("time", {}).get("anchor"),
        )


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether a RuntimeError says that memory ran out.

    It does if it is CUDA's own class, or has the words of the CPU allocator.
    """
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def peak(model: FusedModel, point: StepPoint, limit_bytes: float | None) -> dict[str, Any]:
    """Return the peak of one step.

    An out-of-memory is an observation: more than `known` bytes would have been needed.
    """
    cuda = model.base.device.type == "cuda"
    failed = False
    try:
        found = _cuda_peak(model, point) if cuda else _cpu_peak(model, point, limit_bytes)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        failed = True
    if failed:  # outside the except block: the traceback holds the step's tensors
        known = torch.cuda.get_device_properties(model.base.device).total_memory if cuda else limit_bytes
        if cuda:
            torch.cuda.empty_cache()
        return {"censored": True, "known": int(known or 0)}
    return found


def _cpu_peak(model: FusedModel, point: StepPoint, limit_bytes: float | None) -> dict[str, Any]:
    peak = measure_peak(model, point, limit_bytes=limit_bytes)
    return {"dynamic": peak.dynamic, "state": peak.state, "total": peak.total}


def _cuda_peak(model: FusedModel, point: StepPoint) -> dict[str, Any]:
    device = model.base.device
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = PointStep(model, point)
    step.run()  # allocators of libraries make their workspaces here
    torch.cuda.synchronize(device)
    state = torch.cuda.memory_allocated(device) - before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step.run()
    torch.cuda.synchronize(device)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    context = max(0, total - free - torch.cuda.memory_reserved(device))
    if not allocated:
        raise RuntimeError(f"{device} says that nothing was allocated: no measurement")
    return {
        "dynamic": allocated - before - state,
        "state": state,
        "total": reserved + context,
        "allocated": allocated,
        "reserved": reserved,
        "context": context,
    }


def clock(model: FusedModel) -> Callable[[], float]:
    """Return the clock that steps are timed by, in seconds.

    On a CPU with one thread it is the process's CPU time, because the machine may be shared;
    elsewhere it is the wall clock, and on a GPU the device is waited for.
    """
    if model.base.device.type == "cuda":

        def wait() -> float:
            torch.cuda.synchronize(model.base.device)
            return time.perf_counter()

        return wait
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


ANCHOR: Final = StepPoint(
    jobs=(
        JobPoint(adapter=AdapterPoint(method="lora", rank=16), lengths=(60,), labels=30),
        JobPoint(adapter=AdapterPoint(method="dynmole", rank=8, experts=4, top_k=2), lengths=(30,), labels=15),
    )
)
"""The reference step of every block.

On a shared machine blocks of one run differ by a quarter in speed, the repeats within a block by
4%. With the reference step, times of different blocks can be brought to one speed.
"""


class Timed:
    """Keeps a step ready to be timed."""

    def __init__(self, model: FusedModel, measured: Measured, *, seed: int) -> None:
        self.measured = measured
        self._step = PointStep(model, measured.point, seed=seed)
        self._now = clock(model)
        self._recompute = measured.point.recompute
        self._run()  # warm-up

    def sample(self) -> float:
        """Return the seconds of one more step."""
        start = self._now()
        self._run()
        return max(1e-6, round(self._now() - start, 6))  # the clocks resolve no less

    def _run(self) -> None:
        self._step.model.recompute = self._recompute  # the steps of a block share the model
        outcomes = self._step.model.step(self._step.parts)
        self._step.optimize()
        active = [outcome.active_experts for outcome in outcomes]
        self.measured.active_experts = active if any(one is not None for one in active) else None


def measure_block(
    model: FusedModel,
    block: Sequence[Measured],
    *,
    repeats: int,
    limit_bytes: float | None,
    seed: int,
    found: Callable[[Measured], None],
    sampled: Callable[[Measured], None],
) -> None:
    """Fill in the block's peaks that are missing, and its times until each step has `repeats`.

    A peak is measured with the device to itself. Times are taken one sample of each step in turn,
    every other round backwards, so that a busy moment of the machine hits all alike. On a GPU as
    many of the block's steps take turns as fit side by side.

    `found` is told of every peak and `sampled` of every time as soon as there is one; they may
    raise to end early.
    """
    # what a model keeps from its first step on belongs to no step's peak
    Timed(model, Measured(point=ANCHOR), seed=seed)
    for measured in block:
        if not measured.memory:
            measured.memory = peak(model, measured.point, limit_bytes)
            found(measured)
    anchor = Timed(model, Measured(point=ANCHOR), seed=seed)
    for group in side_by_side([one for one in block if not one.censored], _room(model)):
        _time_group(model, group, anchor, repeats=repeats, seed=seed, sampled=sampled)


def side_by_side(block: Sequence[Measured], room: float) -> Iterator[list[Measured]]:
    """Yield the steps in groups that fit side by side in `room` bytes.

    The states of a group, with its largest step's own peak, are at most `room` bytes; a step that
    is larger comes alone.
    """
    group: list[Measured] = []
    for one in block:
        wider = [*group, one]
        need = sum(each.memory["state"] for each in wider) + max(each.memory["dynamic"] for each in wider)
        if group and need > room:
            yield group
            wider = [one]
        group = wider
    if group:
        yield group


def _room(model: FusedModel) -> float:
    """Return the bytes that steps kept ready may take.

    They are nine tenths of what is free, for the allocator's fragments.
    """
    if model.base.device.type != "cuda":
        return float("inf")
    gc.collect()
    torch.cuda.empty_cache()
    return 0.9 * torch.cuda.mem_get_info(model.base.device)[0]


def _time_group(
    model: FusedModel,
    group: Sequence[Measured],
    anchor: Timed,
    *,
    repeats: int,
    seed: int,
    sampled: Callable[[Measured], None],
) -> None:
    timed = [ready for one in group if (ready := _ready(model, one, seed)) is not None]
    anchors: list[float] = []
    for turn in range(repeats):
        anchors.append(anchor.sample())
        for one in timed[:: -1 if turn % 2 else 1]:
            if len(one.measured.samples) < repeats:
                seconds = _sampled(model, one)
                if seconds is None:
                    timed.remove(one)
                    continue
                one.measured.samples.append(seconds)
                one.measured.anchor_s = statistics.median(anchors)
                sampled(one.measured)
        anchors.append(anchor.sample())


def _sampled(model: FusedModel, step: Timed) -> float | None:
    """Return one time of a step.

    Returns None where its memory, beside the others', is too scattered after all.
    """
    failed = False
    try:
        return step.sample()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        failed = True
    if failed and model.base.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _ready(model: FusedModel, measured: Measured, seed: int) -> Timed | None:
    """Return the step, warm and ready to be timed.

    Returns None where it fits alone but not beside the block's others: it then has no times.
    """
    failed = False
    try:
        return Timed(model, measured, seed=seed)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        failed = True
    if failed and model.base.device.type == "cuda":
        torch.cuda.empty_cache()
    return None
