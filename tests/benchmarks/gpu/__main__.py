"""The suite itself."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

from gpu.live import live
from gpu.profile import profile
from gpu.store import Store
from gpu.timing import clear, timed
from gpu.workload import METHODS, Case, Fused, PeftSequential, load

EXIT_NO_GPU = 5
PARTS = ("tests", "ceilings", "fused", "methods", "memory", "peft", "profile", "live")
ROOT = Path(__file__).parents[3]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """Device, versions, commit and date: without them a figure is worth nothing."""

    def known(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or None,
        "changed": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        **{name: known(name) for name in ("torch", "transformers", "peft", "triton")},
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"device": card.name, "total_bytes": card.total_memory, "cuda": torch.version.cuda}
    return facts


def ceilings(store: Store, device: torch.device, *, tiny: bool) -> None:
    """Measure what the card reaches in this run: GEMMs of the step's shapes, memory bandwidth."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shapes = (
        [(64, 64, 64)] if tiny else [(8192, 8192, 8192), (6144, 4096, 14336), (6144, 4096, 4096), (1024, 4096, 4096)]
    )
    for m, k, n in shapes:
        key = f"matmul {m}x{k}x{n}"
        if not store.has(key):
            a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype)
            facts = timed(partial(torch.nn.functional.linear, a, b), device, repeats=20)
            store.add(key, flop_per_s=2 * m * k * n / facts["median_s"], **facts)
    if not store.has("copy"):
        x = torch.empty(1 << (16 if tiny else 30), dtype=torch.uint8, device=device)
        y = torch.empty_like(x)
        facts = timed(lambda: y.copy_(x), device, repeats=20)
        store.add("copy", bytes_per_s=2 * x.numel() / facts["median_s"], **facts)


def cases(part: str, *, tiny: bool) -> Iterator[Case]:
    """The fused steps of a part."""
    models = ("llama-7b", "llama-3-8b")
    # 1, 2, 4, 8 jobs: about 1,500 tokens each (saturated), and 4 x 200 (launch-bound when alone)
    if part == "fused":
        for model in models:
            for rows, length in ((4, 384), (4, 200)):
                for jobs in (1, 2, 4, 8):
                    yield Case(model=model, method="lora", jobs=jobs, rows=rows, length=length)
    elif part == "methods":
        for method in ("mixlora", "mola", "dynmole"):
            for jobs in (1, 4):
                yield Case(model="llama-7b", method=method, jobs=jobs, rows=4, length=200)
    elif part == "memory":
        for recompute in (False, True):
            for method in METHODS:
                yield Case(model="llama-7b", method=method, jobs=4, rows=2, length=256, recompute=recompute)


def run_cases(
    store: Store, device: torch.device, part: str, left: Callable[[], float], *, tiny: bool, make: str = "fused"
) -> None:
    """Measure the cases of a part that are not in the store; the base is built once per model."""
    base: Any = None
    for case in cases("fused" if part == "peft" else part, tiny=tiny):
        key = f"{make} {case.key}"
        if store.has(key) or (tiny and case.model != "llama-7b"):
            continue
        if left() < 60 and not tiny:
            return
        if make == "fused" and (base is None or base.name != case.model):
            base = None
            clear(device)
            base = load(case.model, device, tiny=tiny)
        clear(device)
        error: str | None = None
        facts: dict[str, Any] = {}
        try:
            work: Any = Fused(case, base) if make == "fused" else PeftSequential(case, device, tiny=tiny)
            facts = timed(work, device)
            facts |= {"tokens": work.tokens, "tokens_per_s": work.tokens / facts["median_s"]}
        except RuntimeError as failure:
            error = str(failure)[:300]
        work = None
        clear(device)
        store.add(key, part=part, error=error, recompute=case.recompute, jobs=case.jobs, **facts)


def run_tests(store: Store, out: Path) -> None:
    """The gpu-marked tests, where pytest is installed."""
    if store.has("tests"):
        return
    if find_spec("pytest") is None:
        store.add("tests", error="pytest is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "filterwarnings=default", "tests/runtime/gpu"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=450, check=False)
    (out / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    summary = (done.stdout.strip().splitlines() or [""])[-1]
    store.add("tests", returncode=done.returncode, summary=summary, seconds=time.monotonic() - began)


def main() -> None:
    """Run the parts that are left within the budget; every result is written at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=460.0, help="seconds; call again to go on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script on a CPU")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("loramux: the GPU suite needs a CUDA device, and this machine has none\n")
        sys.exit(EXIT_NO_GPU)
    device = torch.device(given.device)
    start = time.monotonic()
    left: Callable[[], float] = lambda: given.budget - (time.monotonic() - start)
    given.out.mkdir(parents=True, exist_ok=True)
    store = Store(given.out / "results.jsonl")
    store.add(f"environment {len(store.rows)}", **environment(device))
    gc.freeze()  # garbage is collected before each measurement: not all that is imported
    for part in given.parts:
        if left() < 60 and not given.tiny:
            break
        if part == "tests":
            run_tests(store, given.out)
        elif part == "ceilings":
            ceilings(store, device, tiny=given.tiny)
        elif part == "profile":
            profile(store, given.out, device, left, tiny=given.tiny)
        elif part == "live":
            live(store, given.out, given.device, left, tiny=given.tiny)
        elif part == "peft":
            if find_spec("peft") is not None:
                run_cases(store, device, part, left, tiny=given.tiny, make="peft")
        else:
            run_cases(store, device, part, left, tiny=given.tiny)
    sys.stdout.write(json.dumps({"results": len(store.rows), "seconds": round(time.monotonic() - start, 1)}) + "\n")


if __name__ == "__main__":
    main()
