"""Peak memory of a fused step against as many separate runs, by tracking live storages.

Run by hand, no GPU needed.

    python tests/benchmarks/bench_memory.py [--shape llama-7b] [--layers N]
        [--out analysis/results/memory-fake]

The step really runs, on fake tensors (shapes and storages without data), so that a 7B model fits
anywhere, as it would on a CUDA device: bf16, one product for all jobs. Counted: frozen weights,
adapters in fp32 with gradients and both AdamW moments, and everything the step keeps or makes for a
moment. Beside it the allocation plan, which takes under a millisecond.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loramux_profiles.shape_catalog import load_shape
from loramux_profiles.step_plan import plan_bytes
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.base_model import shape_config
from loramux_runtime.profiler.fake import FakeStep
from loramux_runtime.profiler.identity import commit, versions
from loramux_traces.filesafe import write_json

MIB = 1 << 20
JOBS = 4
METHODS = {
    "lora": AdapterPoint(method="lora", rank=16),
    "mixlora": AdapterPoint(method="mixlora", rank=16, experts=8, top_k=2),
    "dynmole": AdapterPoint(method="dynmole", rank=24, experts=6, top_k=2, targets="mlp"),
}


def step(method: str, jobs: int, rows: tuple[int, int], *, recompute: bool) -> StepPoint:
    """`jobs` jobs with rows[0] rows of rows[1] tokens each, all of them learned."""
    job = JobPoint(adapter=METHODS[method], lengths=(rows[1],) * rows[0], labels=rows[0] * (rows[1] - 1))
    return StepPoint(jobs=(job,) * jobs, recompute=recompute)


def table(name: str, layers: int | None) -> list[dict[str, Any]]:
    """Fused against separate runs for each method, batch and recomputation."""
    shape = load_shape(name)
    shape = shape if layers is None else replace(shape, layers=layers)
    fake = FakeStep(shape_config(name, num_hidden_layers=shape.layers))
    print(f"{name} in bf16, {shape.layers} layers, {JOBS} jobs, MiB")
    print(
        f"{'':38}{'weights':>9}{'state':>8}{'step':>9}{'plan':>9}{'fused':>9}{'alone x4':>9}{'share':>8}{'seconds':>9}"
    )
    found = []
    for rows in ((4, 200), (2, 256), (4, 512)):
        for method in METHODS:
            for recompute in (False, True):
                start = time.time()
                together = step(method, JOBS, rows, recompute=recompute)
                fused = fake.peak(together)
                alone = fake.peak(step(method, 1, rows, recompute=recompute))
                planned = plan_bytes(shape, together, dtype="bf16", exact=False)
                share = fused.total / (JOBS * alone.total)
                title = f"{method}, {together.tokens:,} tokens{', recompute' if recompute else ''}"
                print(
                    f"  {title:36}{fused.weights / MIB:9,.0f}{fused.state / MIB:8,.0f}{fused.dynamic / MIB:9,.0f}"
                    f"{planned / MIB:9,.0f}{fused.total / MIB:9,.0f}{JOBS * alone.total / MIB:9,.0f}{share:8.1%}"
                    f"{time.time() - start:9.0f}",
                    flush=True,
                )
                found.append(
                    {
                        "method": method,
                        "jobs": JOBS,
                        "rows": rows[0],
                        "tokens_per_row": rows[1],
                        "recompute": recompute,
                        "weights_bytes": fused.weights,
                        "state_bytes": fused.state,
                        "dynamic_bytes": fused.dynamic,
                        "planned_dynamic_bytes": planned,
                        "fused_bytes": fused.total,
                        "alone_bytes": alone.total,
                        "share_of_separate": share,
                    }
                )
    return found


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-7b")
    parser.add_argument("--layers", type=int, help="fewer layers, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("analysis/results/memory-fake"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = table(options.shape, options.layers)
    if options.layers is None:
        options.out.mkdir(parents=True, exist_ok=True)
        document = {
            "schema_version": 1,
            "estimated": "live storages of a step on fake tensors, 512-byte rounding; no device",
            "shape": options.shape,
            "dtype": "bf16",
            "versions": versions(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "lines": lines,
        }
        write_json(options.out / f"{options.shape}.json", document)


if __name__ == "__main__":
    main()
