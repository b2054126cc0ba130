"""The live scheduler on real training.

Replays under many policies, and what its decisions and books cost.

    python tests/benchmarks/bench_live.py replay --jobs 12 --out replays12 --profile mine.json
    loramux validate --real replays12 --out agreement12
    python tests/benchmarks/bench_live.py overhead

A replay is a process of its own on one thread; two at a time share a machine of two cores, so
measure the profile beside another one too. Nothing else may run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from live_traces import mixed_trace
from loramux_traces.filesafe import read_json_object, write_json
from loramux_traces.runfolder import MANIFEST
from loramux_traces.writer import write_trace

POLICIES = ("fifo", "sjf", "priority", "aspen-minpad", "aspen", "exclusive")
SHAPES = {12: {"seed": 5, "gap_s": 0.5, "work": 7.0}, 40: {"seed": 2, "gap_s": 0.5, "work": 5.0}}
"""Of the traces, by their jobs."""
MEMORY = "150MiB"
"""Room for a few small jobs or one large one."""


def replay(given: argparse.Namespace) -> None:
    """Every policy `--repeats` times, interleaved: a machine that slows down does so for all."""
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    trace = out / f"mixed{given.jobs}.csv"
    write_trace(mixed_trace(given.jobs, **SHAPES[given.jobs]), trace, force=True)  # type: ignore[arg-type]
    orders = iter([(policy, n) for n, policy in product(range(given.repeats), given.policy or POLICIES)])
    running: list[tuple[subprocess.Popen[bytes], str, float]] = []

    def start() -> bool:
        for policy, n in orders:
            name = f"{policy}-r{n}"
            if (out / name / MANIFEST).exists():
                continue
            command = [sys.executable, "-m", "loramux_cli.main", "run", "--no-supervise", "--quiet", "--record"]
            command += ["--state", str(out / name), "--base", "llama-tiny", "--policy", policy, "--threads", "1"]
            command += ["--device-profile", given.profile, "--memory", MEMORY, "--trace", str(trace), "--seed", "0"]
            running.append((subprocess.Popen(command), name, time.monotonic()))
            return True
        return False

    while len(running) < given.parallel and start():
        pass
    while running:
        for item in list(running):
            process, name, began = item
            if process.poll() is not None:
                running.remove(item)
                print(f"{name}: exit {process.returncode}, {time.monotonic() - began:.1f} s", flush=True)
                n = name.rpartition("-r")[2]
                manifest = read_json_object(out / name / MANIFEST)
                write_json(out / name / MANIFEST, {**manifest, "repeat": int(n)})
                start()
        time.sleep(0.2)


def _shares(policy: str, profile: str) -> Iterator[dict[str, object]]:
    """Overhead at 8 residents with steps of several lengths."""
    for length in (8, 32, 96):
        with tempfile.TemporaryDirectory() as folder:
            jobs = [
                {"id": f"j{i}", "method": method, "adapter": {"rank": 8} | ({} if method == "lora" else {"num_experts": 4}),
                 "data": {"synthetic": {"seq_len": length}}, "batch_size": 4, "micro_batch_size": 4, "steps": 60}
                for i, method in enumerate(["lora", "mixlora", "mola", "dynmole"] * 2)
            ]  # fmt: skip
            state = Path(folder) / "state"
            file = Path(folder) / "jobs.json"
            file.write_text(json.dumps({"jobs": jobs}))
            run = [sys.executable, "-m", "loramux_cli.main"]
            from loramux_runtime.live.state.store import Store

            state.mkdir()
            Store(state, create=True).close()
            subprocess.run([*run, "submit", str(file), "--state", str(state)], check=True, stdout=subprocess.DEVNULL)
            options = [
                "--base",
                "llama-tiny",
                "--device-profile",
                profile,
                "--policy",
                policy,
                "--exit-when-idle",
                "--quiet",
            ]
            subprocess.run([*run, "run", "--state", str(state), "--no-supervise", *options], check=True)
            store = Store(state)
            steps = store.fact("steps")
            share = store.fact("overhead_share")
            spans = [row for row in store.events() if row["event"] in ("start", "finish")]
            seconds = (spans[-1]["t_s"] - spans[0]["t_s"]) / steps
            yield {
                "policy": policy,
                "seq_len": length,
                "steps": steps,
                "step_ms": 1000 * seconds / (1 + share),
                "overhead_ms": 1000 * seconds * share / (1 + share),
                "share": share,
            }


def overhead(given: argparse.Namespace) -> None:
    """All that the process does between fused steps, over the time in them."""
    rows = [row for policy in given.policy or ("fifo", "aspen") for row in _shares(policy, given.profile)]
    for row in rows:
        print(
            f"{row['policy']:8} seq_len {row['seq_len']:3}: step {row['step_ms']:.1f} ms, "
            f"overhead {row['overhead_ms']:.2f} ms = {row['share']:.2%}"
        )
    if given.out:
        write_json(given.out, {"rows": rows})


def main() -> None:
    """Choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["replay", "overhead"])
    parser.add_argument("--jobs", type=int, choices=list(SHAPES), default=12)
    parser.add_argument("--policy", action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--profile", default="cpu/llama-tiny")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    {"replay": replay, "overhead": overhead}[given.what](given)


if __name__ == "__main__":
    main()
