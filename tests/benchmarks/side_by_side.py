"""One benchmark on two checkouts in alternating turns, so that both meet the same machine.

    python tests/benchmarks/side_by_side.py --turns 5 OLD bench_simulator.py policies --jobs 8000
    python tests/benchmarks/side_by_side.py --unit "ms =" OLD bench_live.py overhead

OLD is the folder of the other checkout. Each turn runs the benchmark of that name in each checkout;
of every line that it prints, the first number before UNIT counts. Printed are the medians, their
ratio (new over old), and the ratios of the single turns.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("traces", "profiles", "policies", "simulator", "runtime", "analysis", "cli")


def turn(checkout: Path, command: list[str], unit: str) -> dict[str, float]:
    """Run the benchmark once; return the number before the unit by the line's label."""
    path = os.pathsep.join(str(checkout / name) for name in PACKAGES)
    script = checkout / "tests" / "benchmarks" / command[0]
    done = subprocess.run(
        [sys.executable, str(script), *command[1:]],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    found = {}
    for line in done.stdout.splitlines():
        match = re.search(rf"([\d,]+(?:\.\d+)?) ?{re.escape(unit)}", line)
        if match is not None:
            label = re.sub(r"\s+", " ", line[: match.start()].strip()) or unit
            found[re.split(r" step |: ", label)[0]] = float(match[1].replace(",", ""))
    return found


def main() -> None:
    """Take turns and compare."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("old", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--unit", default="jobs/CPU-s")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    sides = {"old": given.old.resolve(), "new": ROOT}
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: {side: [] for side in sides})
    for number in range(given.turns):
        # who goes first alternates too: a machine that warms up or slows down favours nobody
        for side in sorted(sides, reverse=bool(number % 2)):
            for label, value in turn(sides[side], given.command, given.unit).items():
                values[label][side].append(value)
    for label, both in values.items():
        old, new = statistics.median(both["old"]), statistics.median(both["new"])
        ratios = [b / a for a, b in zip(both["old"], both["new"], strict=True)]
        single = " ".join(f"{ratio:.3f}" for ratio in ratios)
        shown = f"{label:28} old {old:12,.2f}  new {new:12,.2f}  {given.unit}"
        print(f"{shown}  new/old {new / old:.3f}  turns {single}  median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
