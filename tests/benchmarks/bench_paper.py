"""What a fused step would cost a GPU on paper: kernels, bytes, FLOPs, a roofline.

    python tests/benchmarks/bench_paper.py --model llama-3-8b --method lora --jobs 4
    python tests/benchmarks/bench_paper.py --all --json analysis/results/paper/today.json

Nothing is measured. The real step runs on tensors without data, at 2 and at 3 layers; all layers
are alike, and so the whole model is worked out from the two (to a kernel or two: small tensors of
several layers share one). Rates: bf16 products 750 TFLOP/s, fp32 45, attention 350, memory 4 TB/s,
at least 2 us a kernel, nothing found in a cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.base_model import shape_config
from paper_counter import FROZEN, HEAD, Paper, count

ADAPTERS: Final = {
    "lora": AdapterPoint(method="lora", rank=16),
    "mixlora": AdapterPoint(method="mixlora", rank=16, experts=8, top_k=2),
    "mola": AdapterPoint(method="mola", rank=8, experts=5, top_k=2),
    "dynmole": AdapterPoint(method="dynmole", rank=24, experts=6, top_k=2, targets="mlp"),
    "loramoe": AdapterPoint(method="loramoe", rank=16, experts=4, top_k=2, targets="mlp"),
}
LONG: Final = "192,320,448,576"
CASES: Final = (
    ("llama-3-8b", "lora", 4, LONG, True),
    ("llama-3-8b", "lora", 4, LONG, False),
    ("llama-3-8b", "mixlora", 4, LONG, True),
    ("llama-3-8b", "dynmole", 4, LONG, True),
    ("llama-3-8b", "mola", 4, LONG, True),
    ("tinyllama-1.1b", "lora", 8, "128", True),
)


def step_on_paper(
    model: str, method: str, jobs: int, lengths: str, *, dropout: bool, rank: int | None = None,
    recompute: bool = False, layers: int | None = None,
) -> Paper:  # fmt: skip
    """Return the step's cost.

    `layers`: count a model of so many, instead of working all of them out from 2 and 3.
    """
    adapter = replace(ADAPTERS[method], dropout=dropout)
    if rank is not None:
        adapter = replace(adapter, rank=rank)
    rows = tuple(int(n) for n in lengths.split(","))
    job = JobPoint(adapter=adapter, lengths=rows, labels=sum(rows) - len(rows))
    point = StepPoint(jobs=(job,) * jobs, recompute=recompute)
    if layers is not None:
        return count(shape_config(model, num_hidden_layers=layers), point)
    two, three = (count(shape_config(model, num_hidden_layers=n), point) for n in (2, 3))
    return two.deeper(three, shape_config(model).num_hidden_layers - 2)


def as_dict(paper: Paper) -> dict[str, Any]:
    """Return the figures as `--json` has them."""
    total = paper.total
    gemm = sum(paper.costs[name].moved_bytes for name in (FROZEN, HEAD) if name in paper.costs)
    return {
        "tokens": paper.tokens,
        "kernels": total.kernels,
        "gb": total.moved_bytes / 1e9,
        "gb_outside_gemm": (total.moved_bytes - gemm) / 1e9,
        "tflop": total.flops / 1e12,
        "ms": total.seconds * 1e3,
        "tokens_per_s": paper.tokens / total.seconds,
        "aten_calls": paper.aten_calls,
        "host_to_device_copies": paper.host_copies,
        "reads_back": paper.reads_back,
        "classes": {
            name: {
                "kernels": cost.kernels,
                "gb": cost.moved_bytes / 1e9,
                "tflop": cost.flops / 1e12,
                "ms": cost.seconds * 1e3,
            }
            for name, cost in sorted(paper.costs.items(), key=lambda item: -item[1].seconds)
        },
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures of a step by class of work."""
    lines = [f"{'class of work':20} {'kernels':>8} {'GB':>9} {'TFLOP':>8} {'ms':>8}"]
    for name, row in {**found["classes"], "all": found}.items():
        lines.append(f"{name:20} {row['kernels']:8,} {row['gb']:9,.1f} {row['tflop']:8,.1f} {row['ms']:8,.1f}")
    lines.append(
        f"{found['tokens']:,} tokens, {found['tokens_per_s']:,.0f} tokens/s at most; {found['gb_outside_gemm']:,.0f} GB "
        f"outside frozen products and head; {found['aten_calls']:,} operations dispatched, "
        f"{found['host_to_device_copies']} copies to the device, {found['reads_back']} values read back"
    )
    return "\n".join(lines)


def main() -> None:
    """Count what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3-8b", help="a shape that loramux knows")
    parser.add_argument("--method", default="lora", choices=list(ADAPTERS))
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--lengths", default=LONG, help="tokens of each row of a job")
    parser.add_argument("--rank", type=int, help="rank of one expert")
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--layers", type=int, help="count a model of so many layers, without working out the rest")
    parser.add_argument("--all", action="store_true", help="the steps of the table")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [(given.model, given.method, given.jobs, given.lengths, not given.no_dropout)]
    rows: dict[str, Any] = {}
    for model, method, jobs, lengths, dropout in CASES if given.all else chosen:
        began_s = time.monotonic()
        paper = step_on_paper(
            model, method, jobs, lengths, dropout=dropout, rank=given.rank, recompute=given.recompute,
            layers=given.layers,
        )  # fmt: skip
        name = f"{model}, {jobs} {method} x {lengths}{'' if dropout else ', no dropout'}"
        rows[name] = as_dict(paper)
        print(f"{name} (counted in {time.monotonic() - began_s:.0f} s; nothing was measured)\n{table(rows[name])}\n")
        sys.stdout.flush()
    if given.json is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        about = {
            "what": "counted on the real step without data, not measured",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": commit.stdout.strip(),
            "date": time.strftime("%Y-%m-%d"),
        }
        single = next(iter(rows.values())) if len(rows) == 1 else {}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**about, **single, "steps": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
