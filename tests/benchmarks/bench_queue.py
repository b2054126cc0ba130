"""What a thousand queued jobs cost the two that train.

Two residents train for `--seconds`; in the second run a thousand jobs on one file of 20,000 rows
are submitted meanwhile. Printed are the seconds from the end of one fused step to the end of the
next, the process's resident set, and how long a stop takes while rows are read. Run it alone:

    python tests/benchmarks/bench_queue.py [--jobs 1000] [--rows 20000] [--seconds 40]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from loramux_runtime.live.state.store import Store
from loramux_traces.locking import owner

BASE = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _files(folder, given.rows, given.jobs)
        for queued in (0, given.jobs, 0, given.jobs):
            _show(queued, *_run(folder, queued, given.seconds))


def _files(folder: Path, rows: int, jobs: int) -> None:
    text = "the quick brown fox jumps over the lazy dog "
    lines = (
        json.dumps({"instruction": f"{i}: {text * (1 + i % 4)}", "output": text * (1 + i % 3)}) for i in range(rows)
    )
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "few.jsonl").write_text("".join(json.dumps({"text": text * 4}) + "\n" for _ in range(200)))
    job = {"adapter": {"rank": 8}, "batch_size": 4, "steps": 100_000}
    first = [{"id": f"first{i}", "data": {"path": "few.jsonl"}, **job} for i in range(2)]
    others = [{"id": f"job{i:04d}", "data": {"path": "rows.jsonl"}, "seed": i, **job} for i in range(jobs)]
    (folder / "base.yaml").write_text(json.dumps({"base": {"config": BASE, "dtype": "fp32"}}))
    (folder / "first.yaml").write_text(json.dumps({"jobs": first}))
    (folder / "others.yaml").write_text(json.dumps({"jobs": others}))


def _loramux(*words: str) -> list[str]:
    return [sys.executable, "-m", "loramux", *words]


def _run(folder: Path, queued: int, seconds: float) -> tuple[np.ndarray[Any, Any], list[int], float, int, float]:
    """Return the seconds between steps, the resident set over time, and the seconds of a stop.

    Then how many of the queued jobs had been read, after how many seconds.
    """
    state = folder / f"state-{time.monotonic_ns()}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(_loramux("submit", str(folder / "first.yaml"), "--state", str(state)), check=True, **quiet)
    options = ("--base", str(folder / "base.yaml"), "--device", "cpu", "--threads", "1", "--max-resident", "2")
    run = subprocess.Popen(
        _loramux("run", "--state", str(state), *options, "--policy", "fifo", "--record"),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **quiet,
    )
    store = Store(state)
    while int(store.fact("steps", 0)) < 20:
        time.sleep(0.1)
    from_s, begun_s = float(store.fact("now_s")), time.monotonic()
    if queued:
        subprocess.run(_loramux("submit", str(folder / "others.yaml"), "--state", str(state)), check=True, **quiet)
    pid = owner(state)
    assert pid is not None
    held, read_s, read = [], 0.0, 0
    while time.monotonic() - begun_s < seconds:
        time.sleep(0.5)
        held.append(_resident(pid))
        now = sum(job["data_sha256"] is not None for job in store.jobs()) - 2
        if now > read:
            read, read_s = now, time.monotonic() - begun_s
    stopped_s = time.monotonic()
    run.send_signal(signal.SIGTERM)
    run.wait()
    stopped_s = time.monotonic() - stopped_s
    ends = [event["t_s"] for event in store.events() if event["event"] == "step" and event["t_s"] >= from_s]
    store.close()
    return np.diff(ends), held, stopped_s, read, read_s


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _show(queued: int, gaps: np.ndarray[Any, Any], held: list[int], stopped_s: float, read: int, read_s: float) -> None:
    median = float(np.median(gaps))
    shares = (
        " ".join(f"p{q}={np.quantile(gaps, q / 100) / median:.3f}" for q in (90, 99))
        + f" max={gaps.max() / median:.3f}"
    )
    over = float(np.mean(gaps > 1.05 * median))
    mib = [value >> 20 for value in (held[0], max(held), held[-1])]
    print(
        f"queued={queued} steps={len(gaps)} median={1000 * median:.1f} ms {shares} over 1.05x={over:.1%} "
        f"mean={gaps.mean() / median:.3f} resident MiB first/most/last={mib} read={read} in {read_s:.0f} s "
        f"stop={stopped_s:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
