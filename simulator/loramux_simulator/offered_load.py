"""Compute the offered load of a trace on a cluster, and rescale a trace to another load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from loramux_profiles.cost import CostModel, DoesNotFit, declared_micro_steps
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_simulator.options import SimOptions
from loramux_traces.errors import UsageError
from loramux_traces.job import JobSpec, Trace
from loramux_traces.limits import MAX_SECONDS

PLAIN: Final = SimOptions()


def offered_load(trace: Trace, devices: Sequence[DeviceProfile], options: SimOptions = PLAIN) -> float:
    """Return the work that the jobs bring per second, over what the devices do one job at a time.

    On devices of one type: the jobs' solo device-seconds over (devices x span of the arrivals). On
    several types a job takes other times on each, so that the load is the least share of the time
    that must be busy however the work is spread: a linear program (the static planning problem of
    Harrison, Annals of Applied Probability 10(1), 2000). Above 1, the queue grows for as long as
    jobs arrive, unless jobs that share a base gain enough. Jobs that fit no device, and gangs that
    the run drops, bring no work. Raises UsageError where all jobs come at once.
    """
    span_s = trace.jobs[-1].submit_s - trace.jobs[0].submit_s if len(trace) else 0.0
    if span_s <= 0.0:
        raise UsageError("all jobs of the trace are submitted at once: it has no load to scale")
    types = list(dict.fromkeys(devices))
    counts = [list(devices).count(kind) for kind in types]
    work = _Work([CostModel(kind, fusion=options.fusion, folder=trace.folder) for kind in types], counts, options)
    for spec in trace.jobs:
        work.add(spec)
    return work.busy_s() / span_s


def load_or_none(trace: Trace, devices: Sequence[DeviceProfile], options: SimOptions = PLAIN) -> float | None:
    """Return the offered load; None for jobs that all come at once, or none."""
    if len(trace) < 2 or trace.jobs[-1].submit_s <= trace.jobs[0].submit_s:
        return None
    return offered_load(trace, devices, options)


class _Work:
    """The work of jobs, summed over jobs that are faster on one type by the same factors."""

    def __init__(self, models: list[CostModel], counts: list[int], options: SimOptions) -> None:
        self._models, self._counts, self._options = models, counts, options
        self._references = {model.device.name: model for model in reversed(models)}
        self._folder, self._fusion = models[0].folder, models[0].fusion
        self._known: list[dict[int, bool]] = [{} for _ in models]
        """Whether jobs of a cost fit, for each type."""
        self._solo_s: dict[tuple[float | None, ...], float] = {}
        """Seconds alone on the first type that fits, by the times on all types relative to it."""

    def add(self, spec: JobSpec) -> None:
        """Add a job, unless it fits no device."""
        models = self._models
        fitting = [self._fits(i, spec) for i in range(len(models))]
        first = next((i for i, fits in enumerate(fitting) if fits), None)
        if first is None:
            return
        reference = models[0]
        if spec.duration_s is not None and spec.ref_gpu is not None:
            known = self._references.get(spec.ref_gpu)
            if known is None:
                known = CostModel(load_device(spec.ref_gpu), fusion=self._fusion, folder=self._folder)
                self._references[spec.ref_gpu] = known
            reference = known
        cost = models[first].job_cost(spec)
        micro = declared_micro_steps(spec, cost, reference.job_cost(spec))
        ratios: tuple[float | None, ...] = (1.0,)
        if len(models) > 1:
            own_s = cost.accumulation * cost.solo_step_s
            ratios = tuple(self._ratio(i, spec, own_s) if fits else None for i, fits in enumerate(fitting))
        self._solo_s[ratios] = self._solo_s.get(ratios, 0.0) + micro * cost.solo_step_s * spec.num_gpus

    def _fits(self, type_index: int, spec: JobSpec) -> bool:
        dropped = spec.num_gpus > 1 and self._options.multi_gpu == "drop"
        if dropped or spec.num_gpus > self._counts[type_index]:
            return False
        if self._options.ideal and spec.mem_bytes is None:
            return True
        model = self._models[type_index]
        known, cost = self._known[type_index], id(model.job_cost(spec))  # the model keeps its costs
        fits = known.get(cost)
        if fits is None:
            fits = known[cost] = not isinstance(model.micro_batch(spec), DoesNotFit)
        return fits

    def _ratio(self, type_index: int, spec: JobSpec, own_s: float) -> float:
        """Return the time on a type over that on the first, in three digits: classes are few."""
        cost = self._models[type_index].job_cost(spec)
        return float(f"{cost.accumulation * cost.solo_step_s / own_s:.3g}")

    def busy_s(self) -> float:
        """Return the seconds that all devices must be busy, the work spread as well as can be."""
        if len(self._models) == 1:
            return self._solo_s.get((1.0,), 0.0) / self._counts[0]
        if not self._solo_s:
            return 0.0
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import lil_array

        # unknowns: work of class c on type t, in seconds of its first type; then the busy time
        places = [(c, t, r) for c, ratios in enumerate(self._solo_s) for t, r in enumerate(ratios) if r is not None]
        whole = lil_array((len(self._solo_s), len(places) + 1))
        room = lil_array((len(self._models), len(places) + 1))
        for at, (c, t, ratio) in enumerate(places):
            whole[c, at] = 1.0
            room[t, at] = ratio
        for t, count in enumerate(self._counts):
            room[t, len(places)] = -float(count)
        goal = np.zeros(len(places) + 1)
        goal[-1] = 1.0
        scale = max(self._solo_s.values()) or 1.0
        needed = np.array(list(self._solo_s.values())) / scale
        whole_csr, room_csr = whole.tocsr(), room.tocsr()
        found: Any = linprog(  # type: ignore[call-overload]  # the stubs know of no sparse matrices
            goal, A_ub=room_csr, b_ub=np.zeros(len(self._models)), A_eq=whole_csr, b_eq=needed, method="highs"
        )
        if found.status != 0:
            raise ValueError(f"offered load: {found.message}")
        return float(found.x[-1]) * scale


def at_load(trace: Trace, load: float, devices: Sequence[DeviceProfile], options: SimOptions = PLAIN) -> Trace:
    """Return the trace with its inter-arrival times stretched or squeezed to that load.

    All else stays as it is. Raises UsageError for a load that is not above 0, and where no job fits
    a device.
    """
    if not load > 0.0:
        raise UsageError(f"load must be above 0, not {load}")
    factor = offered_load(trace, devices, options) / load
    if factor <= 0.0:
        raise UsageError("no job of the trace fits a device: it has no load to scale")
    first_s = trace.jobs[0].submit_s
    last_s = first_s + (trace.jobs[-1].submit_s - first_s) * factor
    if not last_s <= MAX_SECONDS:
        raise UsageError(f"load {load:g} is too small: the last job would come after {last_s:.3g} s of {MAX_SECONDS:g}")
    jobs = [replace(spec, submit_s=first_s + (spec.submit_s - first_s) * factor) for spec in trace.jobs]
    note = f"inter-arrival times x {factor:.6g} for load {load:g}"
    return replace(trace, jobs=jobs, provenance=f"{trace.provenance}; {note}" if trace.provenance else note)
