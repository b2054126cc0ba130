"""Speed of the simulator in jobs (or fused steps) per CPU-second of one core.

Run by hand, never as a unit test.

    python tests/benchmarks/bench_simulator.py [policies|growth|million|steps] [--jobs N]

`policies`: 64 devices, rate fidelity, a congested Poisson trace (queue of thousands), all metrics
kept, plots off; once with one job class and once with the mixed classes of the Philly-like
generator. `growth`: fifo from 10k jobs up, ten times as many each time. `million`: 1M jobs read
from a file that another process wrote, with the peak memory. `steps`: step fidelity, 8 residents
under aspen. Every figure is printed beside the time of a fixed Python loop in the same process,
because the machines are shared.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from loramux_simulator import simulate
from loramux_traces import generate
from loramux_traces.job import JobSpec, Trace
from loramux_traces.reader import read_trace

POLICIES = ("fifo", "best-fit", "srtf", "aspen", "las")
DEVICES = "64xa100-80g"


def calibrate() -> float:
    """CPU-seconds of a fixed loop: what the machine is worth at this moment."""
    start = time.process_time()
    total = 0
    for i in range(3_000_000):
        total += i
    return time.process_time() - start


def one_class(jobs: int, rho: float = 1.3) -> Trace:
    """Poisson arrivals, exponential sizes, one class of jobs.

    At load 1.3 a quarter of the jobs wait in the end.
    """
    return generate("poisson", jobs=jobs, seed=1, rho=rho, servers=64, mean_s=1000.0)


def mixed(jobs: int) -> Trace:
    """The Philly-like generator's job mix at load 1.5, single-device jobs."""
    return generate("philly-like", jobs=jobs, seed=1, rho=1.5, servers=64, max_gpus=1)


def measure(trace: Trace, policy: str, **options: Any) -> dict[str, float]:
    """One run: jobs and steps per CPU-second, and the machine's loop time around it."""
    before = calibrate()
    start = time.process_time()
    result = simulate(trace, policy, **options)
    cpu_s = time.process_time() - start
    queue = result.timeline["queue"]["n_waiting"]
    return {
        "cpu_s": cpu_s,
        "jobs_per_cpu_s": len(trace) / cpu_s,
        "steps_per_cpu_s": result.summary["steps"] / cpu_s,
        "queue": max(queue, default=0),
        "preemptions": result.summary["preemptions"],
        "loop_s": (before + calibrate()) / 2,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def show(name: str, row: dict[str, float]) -> None:
    """One line a run."""
    print(
        f"{name:28} {row['jobs_per_cpu_s']:9,.0f} jobs/CPU-s  {row['steps_per_cpu_s']:12,.0f} steps/CPU-s  "
        f"{row['cpu_s']:6.1f} CPU-s  "
        f"queue <= {row['queue']:,}  preemptions {row['preemptions']:,}  rss {row['rss_mib']:,.0f} MiB  "
        f"loop {row['loop_s']:.3f} s",
        flush=True,
    )


def policies(jobs: int) -> None:
    """The table of the issue."""
    for name, trace in (("one class", one_class(jobs)), ("mixed", mixed(jobs))):
        for policy in POLICIES:
            show(f"{name} {policy}", measure(trace, policy, devices=DEVICES))


def growth(jobs: int) -> None:
    """No superlinear growth."""
    size = 10_000
    while size <= jobs:
        show(f"one class fifo {size:,}", measure(one_class(size), "fifo", devices=DEVICES))
        size *= 10


def million(jobs: int) -> None:
    """The engine alone: timeline and event log off.

    Load 1.02, so that the queue stays at some ten thousand.

    The trace is made by another process and read from a file, so that the peak memory is that of
    trace and engine.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/million.csv"
        made = f"--kind poisson --jobs {jobs} --seed 1 --rho 1.02 --servers 64 --mean-s 1000 --out {path}".split()
        subprocess.run([sys.executable, "-m", "loramux_cli.main", "trace", "generate", *made], check=True)
        trace = read_trace(path)
    show(f"one class fifo {jobs:,}", measure(trace, "fifo", devices=DEVICES, timeline=False))


def steps() -> None:
    """Step fidelity with 8 residents."""
    jobs = [
        JobSpec(
            job_id=f"j{i}",
            submit_s=0.0,
            base_model="llama-2-7b",
            method="lora" if i % 2 else "mixlora",
            batch_size=4,
            micro_batch_size=1,
            seq_len=100.0 + 20 * i,
            rank=8,
            total_steps=10_000.0,
            length_dist="alpaca",
        )
        for i in range(8)
    ]
    trace = Trace(name="steps", jobs=jobs)
    for fusion in ("packed", "padded"):
        for policy in ("aspen", "aspen:k=4", "aspen-minpad:k=4"):
            show(f"{fusion} {policy}", measure(trace, policy, fidelity="step", fusion=fusion))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("policies", "growth", "million", "steps"))
    parser.add_argument("--jobs", type=int, default=0)
    given = parser.parse_args()
    if given.what == "steps":
        steps()
    else:
        defaults = {"policies": 40_000, "growth": 100_000, "million": 1_000_000}
        {"policies": policies, "growth": growth, "million": million}[given.what](given.jobs or defaults[given.what])


if __name__ == "__main__":
    main()
