"""A live replay of one trace under fifo and aspen.

`loramux validate` simulates it afterwards, on any machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from gpu.store import Store

POLICIES = ("fifo", "aspen")
NEEDS = ("pandas", "sortedcontainers", "typer", "rich", "pydantic")
SECONDS = 240.0
"""Left of the budget, below which no replay is begun: loading a 7B base and about two minutes of
training.
"""
COLUMNS = (
    "job_id", "submit_s", "base_model", "method", "batch_size", "micro_batch_size", "seq_len", "total_steps", "rank",
    "num_experts", "priority", "dtype",
)  # fmt: skip
_METHODS = (("lora", 16, ""), ("mixlora", 8, "8"), ("lora", 32, ""), ("dynmole", 8, "6"))


def trace(*, tiny: bool) -> str:
    """Twelve jobs of mixed methods, lengths and priorities, one every few seconds."""
    model, dtype = ("llama-tiny", "fp32") if tiny else ("llama-7b", "bf16")
    rows = [",".join(COLUMNS)]
    for i in range(12):
        method, rank, experts = _METHODS[i % 4]
        length, batch = (512, 4) if i % 3 == 2 else (128, 4 if i % 2 else 2)
        steps = 1 if tiny else 12 + 17 * i % 40
        length = 16 if tiny else length
        submit_s = 0.1 * i if tiny else 4.0 * i
        cells = (f"job{i:02d}", submit_s, model, method, batch, batch, length, steps, rank, experts, i % 3, dtype)
        rows.append(",".join(map(str, cells)))
    return "\n".join(rows) + "\n"


def live(store: Store, out: Path, device: str, left: Callable[[], float], *, tiny: bool) -> None:
    """Replay the trace under each policy that is left; the run folders stay under `out`/live."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        store.add("live", error=f"needs {', '.join(missing)}")
        return
    file = out / "live" / "trace.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(trace(tiny=tiny), encoding="utf-8")
    measured = out / "profile-llama-7b.json"
    profile = str(measured) if measured.is_file() else "cpu" if tiny else "h100-80g"
    for policy in POLICIES:
        key = f"live {policy}"
        if store.has(key) or (left() < SECONDS and not tiny):
            continue
        state = out / "live" / f"{policy}-r0"
        shutil.rmtree(state, ignore_errors=True)
        command = [sys.executable, "-m", "loramux_cli.main", "run", "--no-supervise", "--quiet", "--record"]
        command += ["--state", str(state), "--base", "llama-tiny" if tiny else "llama-7b", "--device", device]
        command += ["--dtype", "fp32" if tiny else "bf16", "--device-profile", profile, "--policy", policy]
        command += ["--trace", str(file), "--max-resident", "4", "--allow-other"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        for folder in ("adapters", "checkpoints"):
            shutil.rmtree(state / folder, ignore_errors=True)
        error = done.stderr[-500:] if done.returncode else None
        store.add(key, returncode=done.returncode, error=error, seconds=time.monotonic() - began, profile=profile)
