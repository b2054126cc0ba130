"""Job sets packed by the memory bound against a hard limit.

Does a step ever exceed it, and how much of it is used?

    python tests/benchmarks/bench_admission.py PROFILE [--sets 1000]
        [--out analysis/results/profile-cpu]

Each set draws up to 16 random jobs with their next micro-batches, and a limit between the need of
its smallest job and 1.2 times that of all. Jobs are let in one by one, in order, as long as the
upper bound (weights + states + (1 + margin) * planned dynamic bytes) of those inside stays below
the limit. The fused step of those let in, optimizers included, then really runs on a CPU whose
storage tracker raises at the allocation that would exceed the limit, as a full device would.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench_profile import held_out
from loramux_profiles.records import ProfileRecord, read_record
from loramux_profiles.step_plan import plan_bytes
from loramux_profiles.step_plan.structure import stored_params
from loramux_profiles.step_point import JobPoint, StepPoint
from loramux_runtime.fused.base_model import build_base, shape_config
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.identity import commit, describe_device, versions
from loramux_runtime.profiler.step import measure_peak
from loramux_runtime.profiler.tracker import MemoryLimitError
from loramux_traces.filesafe import write_json

STATE_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The memory bound of a record."""

    record: ProfileRecord
    weights: int

    def bound(self, point: StepPoint) -> float:
        """Most bytes of a step, everything included."""
        record = self.record
        assert record.fit is not None and record.fit.memory is not None
        fit, shape = record.fit.memory, record.model.shape
        states = sum(STATE_BYTES * stored_params(shape, job.adapter) for job in point.jobs)
        planned = plan_bytes(shape, point, dtype=record.model.dtype, exact=record.exact)
        return self.weights + states + (fit.scale * planned + fit.offset_bytes) * (1 + fit.margin)

    def pack(self, jobs: list[JobPoint], limit: float, *, recompute: bool) -> StepPoint | None:
        """Those that fit, in order; None where not one does."""
        inside: tuple[JobPoint, ...] = ()
        for job in jobs:
            if self.bound(StepPoint(jobs=(*inside, job), recompute=recompute)) <= limit:
                inside = (*inside, job)
        return StepPoint(jobs=inside, recompute=recompute) if inside else None


def draw(rng: np.random.Generator, steps: list[StepPoint]) -> tuple[list[JobPoint], bool]:
    """Jobs of two random steps."""
    first, second = (steps[int(i)] for i in rng.integers(0, len(steps), 2))
    return [*first.jobs, *second.jobs], first.recompute


def main() -> None:
    """Pack, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("analysis/results/profile-cpu"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    record = read_record(given.profile)
    model = FusedModel(build_base(shape_config(record.model.name), dtype=record.model.dtype), exact=record.exact)
    admission = Admission(record=record, weights=model.base.weight_bytes)
    rng = np.random.default_rng([given.seed, 0xAD])
    steps = held_out(400, given.seed + 1)
    used: list[float] = []
    exceeded: list[dict[str, Any]] = []
    ran = demanded = 0
    began = time.monotonic()
    while ran < given.sets:
        jobs, recompute = draw(rng, steps)
        everything = StepPoint(jobs=tuple(jobs), recompute=recompute)
        least = min(admission.bound(replace(everything, jobs=(job,))) for job in jobs)
        most = admission.bound(everything)
        limit = float(rng.uniform(least, max(least, 1.2 * most)))
        packed = admission.pack(jobs, limit, recompute=recompute)
        if packed is None:
            continue
        ran += 1
        try:
            peak = measure_peak(model, packed, limit_bytes=limit)
        except MemoryLimitError as error:
            exceeded.append({"set": ran, "limit_bytes": limit, "step": packed.to_dict(), "said": str(error)[:200]})
            continue
        if most > limit:
            demanded += 1
            used.append(peak.total / limit)
        if ran % 50 == 0:
            done = f"{ran} of {given.sets}: {len(exceeded)} out of memory"
            print(
                done,
                f"used {statistics.median(used):.1%}",
                f"{time.monotonic() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    quantiles = np.quantile(used, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    report = {
        "schema_version": 1,
        "measured": "fused steps on a CPU whose storage tracker raises at the limit",
        "profile": record.model.name,
        "profile_date": record.date,
        "sets": ran,
        "out_of_memory": len(exceeded),
        "sets_with_more_demand_than_limit": demanded,
        "limit_used": dict(zip(("p5", "p25", "p50", "p75", "p95"), quantiles, strict=True)),
        "goals": {"out_of_memory": 0, "limit_used_p50": 0.9},
        "margin": record.fit.memory.margin if record.fit and record.fit.memory else None,
        "seed": given.seed,
        "exceeded": exceeded[:10],
        "device": describe_device(torch.device("cpu"), "cpu"),
        "versions": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "admission.json", report)
    print(
        f"{ran} sets, {len(exceeded)} out of memory (goal 0); where more was asked for than there is ({demanded} sets), "
        f"{quantiles[2]:.1%} of the limit was used in the median (goal 90%), {quantiles[0]:.1%} to {quantiles[4]:.1%}"
    )


if __name__ == "__main__":
    main()
