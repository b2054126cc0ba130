"""Every fault of the table, played against a real `loramux run`: what a user sees, what is lost.

Each try has a folder of its own, a tiny base, a handful of jobs of several methods, and a
supervised scheduler. After the fault its cause is taken away, the scheduler is started again, and
every job of which `submit` said that it is submitted must have ended once, with the bits of a run
that nobody disturbed.

    python tests/benchmarks/live_faults.py --tries 3 --out analysis/results/live-cpu/faults.md
    python tests/benchmarks/live_faults.py --tries 1 --only lock

Beside the table stands a .json file with every try: a later call adds its tries to those.

Disks and other users need root, the clock gcc: without them these faults are left out, and the
table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import live_fault_base
import live_fault_clock
import live_fault_disk
import live_fault_folder
import live_fault_lock
import live_fault_poison
import live_fault_process
from live_fault_try import Found, Try, digest, jobs, make_base

HEAD = """# Faults of the live scheduler

Made by `python tests/benchmarks/live_faults.py`, last on {about}. Measured on CPU, with a tiny base; no GPU was there.
`lost`: acknowledged jobs that did not end; `twice`: that ended twice; `other bits`: whose adapter is not that of a run
that nobody disturbed. "exit 6" and its like are how the scheduler ended; "goes on" where it did not.

"""
CASES: dict[str, Callable[[Try], None]] = {
    **live_fault_lock.CASES,
    **live_fault_folder.CASES,
    **live_fault_disk.CASES,
    **live_fault_clock.CASES,
    **live_fault_base.CASES,
    **live_fault_process.CASES,
    **live_fault_poison.CASES,
}


def undisturbed(base: Path, kept: Path | None) -> dict[tuple[str, int], str]:
    """Return the digests of the adapters of a run that nobody disturbs."""
    whole: dict[tuple[str, int], str] = {}
    if kept is not None and kept.exists():
        return {(job_id, int(steps)): sha for job_id, steps, sha in json.loads(kept.read_text())}
    for steps, names in ((150, 5), (live_fault_lock.LONG, 4)):
        one = Try(base, {})
        one.submit(jobs(names, steps))
        one.run("--exit-when-idle")
        code = one.wait(1200)
        assert code == 0, one.said()
        for job_id in one.acknowledged:
            whole[job_id, steps] = digest(one.state / "adapters" / job_id)
        one.close()
    if kept is not None:
        kept.write_text(json.dumps([[*key, sha] for key, sha in whole.items()]))
    return whole


def table(found: dict[str, list[Found]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| fault | tries | what the user sees | lost | twice | other bits | restarts | not as wanted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tries in found.items():
        codes = "/".join(dict.fromkeys("goes on" if f.code is None else f"exit {f.code}" for f in tries))
        said = next((f.said for f in tries if f.said), "")
        for folder in {word for word in said.split() if word.startswith("/tmp/")}:
            said = said.replace(folder, "FOLDER" + folder[folder.find("/state") :] if "/state" in folder else "FOLDER")
        seen = f"{codes}: {said.removeprefix('loramux: ')[:170]}" if said else codes
        notes = "; ".join(dict.fromkeys(note for f in tries for note in f.notes))[:200]
        wrong = "; ".join(dict.fromkeys(text for f in tries for text in f.wrong))[:300]
        sums = [sum(getattr(f, key) for f in tries) for key in ("lost", "twice", "differ", "restarts")]
        cells = [name, len(tries), (seen + (f" ({notes})" if notes else "")), *sums, wrong]
        lines.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def earlier(kept: Path | None) -> dict[str, list[Found]]:
    """Return the tries of earlier calls."""
    if kept is None or not kept.exists():
        return {}
    rows = json.loads(kept.read_text(encoding="utf-8"))
    return {name: [Found(**one) for one in tries] for name, tries in rows.items() if name in CASES}


def about() -> str:
    """Return what the table was measured on: date, commit, processor and Python."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    where = f"{os.cpu_count()} cores ({processor}), Python {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip() or 'unknown'}, {where}"


def main() -> None:
    """Play them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--only", default="", help="Words; faults with one of them in their names are played.")
    parser.add_argument("--out", type=Path, help="File that the table is written to.")
    parser.add_argument("--whole", type=Path, help="File that keeps the undisturbed digests between two calls.")
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else [""]
    chosen = {name: case for name, case in CASES.items() if any(word in name for word in wanted)}
    kept = None if given.out is None else given.out.with_suffix(".json")
    found = earlier(kept)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_base(base)
        whole = undisturbed(base, given.whole)
        for number in range(given.tries):
            for name, case in chosen.items():
                one, began = Try(base, whole), time.monotonic()
                try:
                    case(one)
                except Exception as error:
                    one.found.wrong.append(f"{type(error).__name__}: {error}"[:200])
                finally:
                    one.close()
                found.setdefault(name, []).append(one.found)
                print(f"{name} {number + 1}: {time.monotonic() - began:.0f} s {one.found}", file=sys.stderr, flush=True)
                if given.out is not None and kept is not None:
                    given.out.parent.mkdir(parents=True, exist_ok=True)
                    given.out.write_text(HEAD.format(about=about()) + table(found), encoding="utf-8")
                    rows = {name: [vars(one) for one in tries] for name, tries in found.items()}
                    kept.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
