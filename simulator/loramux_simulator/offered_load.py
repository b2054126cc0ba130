"""Compute the offered load of a trace on a cluster, and rescale a trace to another load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loramux_profiles.cost import CostModel, declared_micro_steps
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_profiles.memory import Fusion
from loramux_traces.errors import UsageError
from loramux_traces.job import Trace


def offered_load(trace: Trace, devices: Sequence[DeviceProfile], *, fusion: Fusion = "packed") -> float:
    """Return the sum of the jobs' solo device-seconds over (devices x span of the arrivals).

    Raises UsageError where the span is zero.
    """
    model = CostModel(devices[0], fusion=fusion, folder=trace.folder)
    references = {devices[0].name: model}
    total_s = 0.0
    for spec in trace.jobs:
        cost = model.job_cost(spec)
        reference = model
        if spec.duration_s is not None and spec.ref_gpu is not None:
            if spec.ref_gpu not in references:
                references[spec.ref_gpu] = CostModel(load_device(spec.ref_gpu), fusion=fusion, folder=trace.folder)
            reference = references[spec.ref_gpu]
        total_s += declared_micro_steps(spec, cost, reference.job_cost(spec)) * cost.solo_step_s * spec.num_gpus
    span_s = trace.jobs[-1].submit_s - trace.jobs[0].submit_s if len(trace) else 0.0
    if span_s <= 0.0:
        raise UsageError("all jobs of the trace are submitted at once: it has no load to scale")
    return total_s / (len(devices) * span_s)


def at_load(trace: Trace, load: float, devices: Sequence[DeviceProfile], *, fusion: Fusion = "packed") -> Trace:
    """Return the trace with its inter-arrival times stretched or squeezed to that load.

    All else stays as it is. Raises UsageError for a load that is not above 0.
    """
    if not load > 0.0:
        raise UsageError(f"load must be above 0, not {load}")
    factor = offered_load(trace, devices, fusion=fusion) / load
    first_s = trace.jobs[0].submit_s
    jobs = [replace(spec, submit_s=first_s + (spec.submit_s - first_s) * factor) for spec in trace.jobs]
    note = f"inter-arrival times x {factor:.6g} for load {load:g}"
    return replace(trace, jobs=jobs, provenance=f"{trace.provenance}; {note}" if trace.provenance else note)
