"""Fuzz the readers: `python -m tests.fuzz [subject ...] [--seconds 60] [--rows N] [--seed S]`.

A fault is printed with the seed that makes it again, and its document is kept; the exit code is
then 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from .campaign import Tally, campaign, peak_mib
from .subjects import SUBJECTS

MOST_FAULTS = 20


def tell(line: str) -> None:
    """Print a line at once: the run may be cut at any time."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Fuzz each subject in its turn, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", default=list(SUBJECTS), metavar="subject", help=", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each subject (default: 60)")
    parser.add_argument("--rows", type=int, help="end a subject after so many rows of documents")
    parser.add_argument("--documents", type=int, help="end a subject after so many documents")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder for documents at fault")
    options = parser.parse_args()
    failed = False
    for name in options.subjects:
        if name not in SUBJECTS:
            parser.error(f"no subject {name!r} (known: {', '.join(SUBJECTS)})")
        failed |= _fuzz(name, options)
    return int(failed)


def _fuzz(name: str, options: argparse.Namespace) -> bool:
    tally, begin, faults = Tally(), time.monotonic(), 0

    def seeds() -> Iterator[int]:
        for seed in itertools.count(options.seed):
            if options.documents is not None and tally.documents >= options.documents:
                return
            if options.rows is not None and tally.rows >= options.rows:
                return
            if options.documents is None and time.monotonic() - begin > options.seconds:
                return
            yield seed

    with tempfile.TemporaryDirectory() as folder:
        for fault in campaign(name, SUBJECTS[name], Path(folder), seeds(), tally):
            faults += 1
            options.keep.mkdir(exist_ok=True)
            kept = options.keep / f"{name}-{fault.seed}.{fault.ending}"
            kept.write_bytes(fault.data)
            tell(f"FAULT {name}: python -m tests.fuzz {name} --seed {fault.seed} --documents 1 ({kept})\n{fault.said}")
            if faults >= MOST_FAULTS:
                break
    tell(
        f"{name}: {tally.documents:,} documents, {tally.rows:,} rows, {tally.size / (1 << 20):,.0f} MiB; {tally.taken:,} taken, "
        f"{tally.refused:,} refused, {faults} at fault; slowest {tally.worst_s:.2f} s, peak {peak_mib():.0f} MiB"
    )
    return faults > 0


sys.exit(main())
