"""Random traces, clusters and options for the simulator's properties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from loramux_profiles.cost import CostModel, declared_micro_steps
from loramux_profiles.devices import load_device, parse_devices
from loramux_simulator import RunResult, simulate
from loramux_traces.canonical import COLUMNS, DEFAULTS, build_trace
from loramux_traces.job import JobSpec, Trace

GIB = 2**30
ENDS = {"COMPLETED", "FAILED_OOM", "UNSCHEDULABLE", "REJECTED"}


def job(job_id: str, submit_s: float = 0.0, **columns: Any) -> JobSpec:
    """A job with the columns that do not matter filled in."""
    given = {"base_model": "smollm2-135m", "method": "lora", "batch_size": 4, "seq_len": 128.0} | columns
    if not {"total_steps", "duration_s", "num_samples"} & set(given):
        given["total_steps"] = 100.0
    return JobSpec(job_id=job_id, submit_s=submit_s, **given)


def trace_of(*jobs: JobSpec) -> Trace:
    return build_trace("test", jobs)


def sized(sizes: list[float], submits: list[float] | None = None, **columns: Any) -> Trace:
    """Jobs `j0`, `j1`, .. that take exactly so many seconds alone under --ideal."""
    starts = submits or [0.0] * len(sizes)
    return trace_of(
        *(job(f"j{i}", t, duration_s=s, **columns) for i, (s, t) in enumerate(zip(sizes, starts, strict=True)))
    )


@dataclass(frozen=True)
class Case:
    """One simulation to play."""

    trace: Trace
    devices: str
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Short enough to read in a failure."""
        rows = [
            {name: value for name in COLUMNS if (value := getattr(spec, name)) != DEFAULTS.get(name)}
            for spec in self.trace.jobs
        ]
        return f"Case(trace_of({', '.join(f'JobSpec(**{row})' for row in rows)}), {self.devices!r}, {self.options})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def play(self, policy: Any, **more: Any) -> RunResult:
        return simulate(self.trace, policy, devices=self.devices, events=True, **(self.options | more))

    def true_steps(self, policy: Any) -> dict[str, float]:
        """What each job has to do, in optimizer steps, computed without the simulator."""
        models = [self._model(name, policy) for name in self.devices_used()]
        found = {}
        for spec in self.trace.jobs:
            declared = spec.steps
            if declared is None:
                cost = models[0].job_cost(spec)
                reference = cost if spec.ref_gpu is None else self._model(spec.ref_gpu, policy).job_cost(spec)
                declared = declared_micro_steps(spec, cost, reference) / cost.accumulation
            found[spec.job_id] = declared if spec.stop_step is None else min(declared, spec.stop_step)
        return found

    def solo_s(self, policy: Any) -> dict[str, tuple[float, float]]:
        """Least and most seconds that each job's true steps take alone on a device of this case."""
        models = [self._model(name, policy) for name in dict.fromkeys(self.devices_used())]
        steps = self.true_steps(policy)
        found = {}
        for spec in self.trace.jobs:
            costs = [model.job_cost(spec) for model in models]
            times = [steps[spec.job_id] * cost.accumulation * cost.solo_step_s for cost in costs]
            found[spec.job_id] = (min(times), max(times))
        return found

    def devices_used(self) -> list[str]:
        return [device.name for device in parse_devices(self.devices)]

    def _model(self, device: str, policy: Any) -> CostModel:
        return CostModel(
            load_device(device),
            fusion=self.options.get("fusion", "packed"),
            copies=policy.copies,
            ideal=self.options.get("ideal", False),
        )


CLUSTERS = ("1xl4", "1xa100-80g", "2xl4", "1xl4,1xa100-40g", "2xa6000", "2xl4,2xa100-40g", "1xrtx-3090,1xl4,1xa100-80g")
BASES = ("smollm2-135m", "tinyllama-1.1b", "llama-7b")


@st.composite
def specs(draw: st.DrawFn, name: str, gangs: bool = True, lasting: bool = True) -> JobSpec:
    length: dict[str, Any]
    kind = draw(st.integers(0, 3))
    if kind == 0:
        length = {"total_steps": draw(st.sampled_from([0.1, 1.0, 3.0, 12.5, 150.0]))}
    elif kind == 1:
        length = {"num_samples": draw(st.sampled_from([1, 50, 3000])), "epochs": draw(st.sampled_from([1.0, 2.5]))}
    else:
        length = {"duration_s": draw(st.sampled_from([1e-3, 0.4, 7.0, 60.0, 60.0, 1000.0] + [9000.0] * lasting))}
        if kind == 3:
            length["ref_gpu"] = draw(st.sampled_from(["l4", "a100-80g", "h100-80g"]))
    batch = draw(st.sampled_from([1, 3, 8, 16]))
    return job(
        name,
        draw(st.sampled_from([0.0, 0.0, 1.0, 1.5, 20.0, 20.0, 300.0, 301.0, 5000.0])),
        base_model=draw(st.sampled_from(BASES)),
        method=draw(st.sampled_from(["lora", "mixlora", "dynmole"])),
        batch_size=batch,
        micro_batch_size=draw(st.sampled_from([None, None, 1, batch])),
        seq_len=draw(st.sampled_from([40.0, 300.0, 900.0])),
        rank=draw(st.sampled_from([4, 16, 64])),
        priority=draw(st.sampled_from([0, 0, 0, 1, 5])),
        mem_bytes=draw(st.sampled_from([None, None, None, 3 * GIB, 9 * GIB, 20 * GIB, 60 * GIB])),
        stop_step=draw(st.sampled_from([None, None, None, 0.5, 2.0, 40.0])),
        num_gpus=draw(st.sampled_from([1, 1, 1, 1, 2, 3])) if gangs else 1,
        user=draw(st.sampled_from(["", "ann", "bob"])),
        **length,
    )


@st.composite
def cases(draw: st.DrawFn, *, fidelity: str | None = None, most: int = 12, **fixed: Any) -> Case:
    chosen = fidelity or draw(st.sampled_from(["rate", "rate", "step"]))
    rate = chosen == "rate"
    count = draw(st.integers(1, most if rate else min(most, 6)))
    jobs = [draw(specs(f"j{i}", gangs=rate, lasting=rate)) for i in range(count)]
    options: dict[str, Any] = {
        "fidelity": chosen,
        "fusion": draw(st.sampled_from(["packed", "padded"])),
        "max_resident": draw(st.sampled_from([None, None, 1, 2, 3])),
        "ideal": draw(st.booleans()),
        "seed": draw(st.integers(0, 3)),
        "prediction_error": draw(st.sampled_from([0.0, 0.0, 0.5])),
    } | fixed
    return Case(trace_of(*jobs), draw(st.sampled_from(CLUSTERS)), options)
