"""Read broken documents one after the other, and say of each whether it ended as it must.

A document is made of (subject, seed) alone, so a fault is found again from its seed.
"""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loramux_traces.errors import InvalidInputError, UsageError

from .subjects import Subject

BASE_S: Final = 0.25
"""CPU seconds that any document may take, beside MIB_S for each MiB of it."""
MIB_S: Final = 1.0
MEMORY_MIB: Final = 512
LONGEST_MESSAGE: Final = 30_000
_FREE: Final = 200
"""Documents until the caches of imports and types are filled, and the memory is looked at."""
_READINGS: Final = 3
"""Readings of a slow document.

A look of the garbage collector at all objects took 0.36 s of one on a slow machine.
"""


@dataclass(frozen=True)
class Fault:
    """A Fault is a document that did not end as it must."""

    seed: int
    ending: str
    data: bytes
    said: str


@dataclass
class Tally:
    """A Tally counts what was read."""

    documents: int = 0
    rows: int = 0
    size: int = 0
    taken: int = 0
    refused: int = 0
    worst_s: float = 0.0
    """Most CPU seconds of one document, those that it may take for its size taken off."""


def document(name: str, subject: Subject, seed: int) -> tuple[str, bytes]:
    """Return (ending, bytes) of the document of a seed."""
    return subject.build(random.Random(f"{name} {seed}"))


def peak_mib() -> float:
    """Return the most MiB that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome(subject: Subject, path: Path, size: int, tally: Tally) -> str:
    """Read a file, and return what is wrong with how that ended, or ''.

    A document that took too long is read again: it is slow by itself if each reading is.
    """
    allowed_s = BASE_S + MIB_S * size / (1 << 20)
    said, seconds = _reading(subject, path, tally)
    for _ in range(1, _READINGS):
        if said or seconds <= allowed_s:
            break
        said, again_s = _reading(subject, path, Tally())
        seconds = min(seconds, again_s)
    tally.worst_s = max(tally.worst_s, seconds - allowed_s + BASE_S)
    if not said and seconds > allowed_s:
        return f"took {seconds:.2f} CPU seconds for {size} bytes"
    return said


def _reading(subject: Subject, path: Path, tally: Tally) -> tuple[str, float]:
    """Read a file once, and return what is wrong with how that ended, and its CPU seconds."""
    before = time.thread_time()
    said = _ending(subject, path, tally)
    return said, time.thread_time() - before


def _ending(subject: Subject, path: Path, tally: Tally) -> str:
    try:
        subject.read(path)
        tally.taken += 1
    except (InvalidInputError, UsageError) as error:
        tally.refused += 1
        said = str(error)
        if not said or len(said) > LONGEST_MESSAGE:
            return f"a message of {len(said)} characters"
        if not said.replace("\n", "").isprintable():
            return f"a message with control characters: {said[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    return ""


def campaign(name: str, subject: Subject, folder: Path, seeds: Iterator[int], tally: Tally) -> Iterator[Fault]:
    """Read the documents of the seeds, and yield those that did not end as they must."""
    for ending, data in subject.valid():  # also fills caches, so that times are those of the documents
        path = folder / f"valid.{ending}"
        path.write_bytes(data)
        subject.read(path)
    for seed in seeds:
        ending, data = document(name, subject, seed)
        path = folder / f"fuzzed.{ending}"
        path.write_bytes(data)
        tally.documents += 1
        tally.rows += 1 + data.count(b"\n")
        tally.size += len(data)
        before = peak_mib()
        said = outcome(subject, path, len(data), tally)
        if not said and tally.documents > _FREE and peak_mib() > max(before, MEMORY_MIB):
            said = f"took the process from {before:.0f} to {peak_mib():.0f} MiB"
        if said:
            yield Fault(seed, ending, data, said)
