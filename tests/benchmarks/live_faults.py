"""Every fault of the table, played against a real `loramux run`: what a user sees, what is lost.

Each try has a folder of its own, a tiny base, a handful of jobs of several methods, and a
supervised scheduler. After the fault its cause is taken away, the scheduler is started again, and
every job of which `submit` said that it is submitted must have ended once, with the bits of a run
that nobody disturbed.

    python tests/benchmarks/live_faults.py --tries 3 --out analysis/results/live-cpu/faults.md
    python tests/benchmarks/live_faults.py --tries 1 --only lock

Disks and other users need root, the clock gcc: without them these faults are left out, and the
table says so.
"""

from __future__ import annotations

import argparse
import json
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
    found: dict[str, list[Found]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_base(base)
        whole = undisturbed(base, given.whole)
        for name, case in chosen.items():
            for number in range(given.tries):
                one, began = Try(base, whole), time.monotonic()
                try:
                    case(one)
                except Exception as error:
                    one.found.wrong.append(f"{type(error).__name__}: {error}"[:200])
                finally:
                    one.close()
                found.setdefault(name, []).append(one.found)
                print(f"{name} {number + 1}: {time.monotonic() - began:.0f} s {one.found}", file=sys.stderr, flush=True)
            if given.out is not None:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
