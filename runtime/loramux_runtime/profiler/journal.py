"""A journal holds what a profiling run has found so far, one line a finding.

Each line is on the disk before the next step runs. A kill at any moment costs the step it hit: the
last line may be torn and is dropped. Everything else that is not as it was written is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.measure import Measured, measure_block
from loramux_traces.errors import InvalidInputError, Problem, StateError, UsageError
from loramux_traces.files import MAX_DOCUMENT, read_file

SUFFIX: Final = ".partial.jsonl"


def journal_path(out: Path) -> Path:
    """Return the path of the journal, beside the record that will be."""
    return out.with_name(out.name + SUFFIX)


class Journal:
    """Keeps an open journal; `identity` says what is measured.

    A journal of anything else is not continued.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool = False, force: bool = False) -> None:
        """Open a journal; with `resume`, read and continue one that is there already.

        Raises StateError where there is one already and neither `resume` nor `force`, or it cannot
        be written; UsageError where it is of something else, InvalidInputError where it is damaged.
        """
        self.path = path
        self.found: list[Measured] = []
        self.notes: dict[str, Any] = {}
        there = path.exists()
        if there and not (resume or force):
            raise StateError(
                f"{path}: left of a run that was broken off; --resume goes on with it, --force begins anew"
            )
        with ExitStack() as opened:  # closed again where anything is wrong with it
            try:
                self._file: IO[bytes] = opened.enter_context(path.open("a+b"))
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                kept = self._read(identity) if resume else 0
                self._file.truncate(kept)
            except BlockingIOError as error:
                raise StateError(f"{path}: another run is writing it") from error
            except OSError as error:
                raise StateError(f"{path}: cannot be written ({error.strerror})") from error
            if not kept:
                self.write({"identity": identity})
            self._opened = opened.pop_all()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line and wait until it is on the disk."""
        try:
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StateError(f"{self.path}: cannot be written ({error.strerror})") from error

    def point(self, index: int, measured: Measured) -> None:
        """Write a new point with its peak."""
        self.write({"point": index, "step": measured.point.to_dict(), "memory": measured.memory})

    def sample(self, index: int, measured: Measured) -> None:
        """Write the newest time of a point."""
        line = {"seconds": measured.samples[-1], "active": measured.active_experts, "anchor": measured.anchor_s}
        self.write({"point": index, **line})

    def note(self, name: str, value: Any) -> None:
        """Write something that is not of a point (transfers, a date).

        The newest of a name counts.
        """
        self.notes[name] = value
        self.write({"note": {name: value}})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def _read(self, identity: dict[str, Any]) -> int:
        """Fill in `found` and `notes`; return the number of bytes that are whole lines."""
        self._file.seek(0)
        data = self._file.read()
        content = parse_journal(self.path, data)
        if content.identity is not None:
            self._check(identity, content.identity)
        self.found, self.notes = content.found, content.notes
        return content.whole

    def _check(self, identity: dict[str, Any], theirs: dict[str, Any]) -> None:
        for key in identity.keys() | theirs.keys():
            if identity.get(key) != theirs.get(key):
                raise UsageError(
                    f"{self.path}: is of {key} {str(theirs.get(key))[:80]!r}, not {str(identity.get(key))[:80]!r}; "
                    "--force begins anew"
                )


@dataclass(slots=True, kw_only=True)
class Content:
    """Holds what a journal's whole lines say."""

    identity: dict[str, Any] | None = None
    """None: not even the first line is whole."""
    found: list[Measured] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    whole: int = 0
    """Bytes of the lines that are whole; a torn last one is left out."""

    def take(self, line: dict[str, Any]) -> None:
        """Take in one line after the first.

        Raises some exception, without useful words, where the line is not one of a journal.
        """
        if "note" in line:
            self.notes.update(line["note"])
            return
        index = line["point"]
        if "step" in line:
            if index != len(self.found):
                raise ValueError(index)
            self.found.append(Measured.from_dict(line))
            return
        if index < 0:
            raise ValueError(index)
        if not 0 < line["seconds"] < float("inf"):
            raise ValueError(line["seconds"])
        self.found[index].samples.append(float(line["seconds"]))
        self.found[index].active_experts = line["active"]
        self.found[index].anchor_s = line["anchor"]


def parse_journal(path: Path, data: bytes) -> Content:
    """Return the content of a journal.

    Raises InvalidInputError where a line is damaged.
    """
    content = Content(whole=data.rfind(b"\n") + 1)
    for number, line in enumerate(data[: content.whole].split(b"\n")[:-1], 1):
        try:
            parsed = json.loads(line)
            if number > 1:
                content.take(parsed)
            else:
                content.identity = dict(parsed["identity"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            what = "not a line that a profiling run wrote; --force begins anew"
            problem = Problem(file=str(path), line=number, column="", value="", allowed=what)
            raise InvalidInputError([problem]) from error
    return content


def read_journal(path: Path) -> Content:
    """Return the content of a journal that is not continued; its file is left as it is.

    Raises InvalidInputError where it cannot be read.
    """
    return parse_journal(path, read_file(path, MAX_DOCUMENT, "a journal"))


def unfinished(found: Iterable[Measured], repeats: int) -> list[int]:
    """Return the indices of points that lack times."""
    return [i for i, one in enumerate(found) if not one.censored and len(one.samples) < repeats]


def record_block(
    journal: Journal,
    model: FusedModel,
    block: Sequence[Measured],
    *,
    repeats: int,
    limit_bytes: float | None = None,
    seed: int = 0,
    tell: Callable[[Measured], None] = lambda one: None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Measure a block (`measure_block`), with every finding in the journal before the next.

    `tell` hears of each peak and of a point's last time. `check` is called after each peak and each
    time; what it raises ends the block.
    """
    numbers = {id(one): i for i, one in enumerate(journal.found)}

    def found(one: Measured) -> None:
        numbers[id(one)] = len(journal.found)
        journal.found.append(one)
        journal.point(numbers[id(one)], one)
        tell(one)
        check()

    def sampled(one: Measured) -> None:
        journal.sample(numbers[id(one)], one)
        if len(one.samples) == repeats:
            tell(one)
        check()

    measure_block(model, block, repeats=repeats, limit_bytes=limit_bytes, seed=seed, found=found, sampled=sampled)


def rows_of(found: Iterable[Measured], repeats: int) -> list[dict[str, Any]]:
    """Return the points of a record.

    They are those that are complete, and those that ran out of memory. Times of a point that was
    broken off are left out, its peak stays.
    """
    rows = []
    for one in found:
        row = one.to_dict()
        if len(one.samples) < repeats:
            row.pop("time", None)
            row.pop("active_experts", None)
        rows.append(row)
    return rows
