"""What a profiling run has found so far, one line a finding, on the disk before the next step runs.

A kill at any moment costs the step it hit: the last line may be torn and is dropped. Everything else that is not as it
was written is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from loramux_runtime.profiler.measure import Measured
from loramux_traces.errors import InvalidInputError, Problem, StateError, UsageError

SUFFIX: Final = ".partial.jsonl"


def journal_path(out: Path) -> Path:
    """Beside the record that will be."""
    return out.with_name(out.name + SUFFIX)


class Journal:
    """An open journal. `identity` says what is measured: a journal of anything else is not gone on with."""

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool = False, force: bool = False) -> None:
        """Raises StateError where there is one already and neither `resume` nor `force`, or it cannot be written;
        UsageError where it is of something else, InvalidInputError where it is damaged."""
        self.path = path
        self.found: list[Measured] = []
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
        """Append a line and have it on the disk."""
        try:
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StateError(f"{self.path}: cannot be written ({error.strerror})") from error

    def point(self, index: int, measured: Measured) -> None:
        """A new point with its peak."""
        self.write({"point": index, "step": measured.point.to_dict(), "memory": measured.memory})

    def sample(self, index: int, measured: Measured) -> None:
        """Its newest time."""
        line = {"seconds": measured.samples[-1], "active": measured.active_experts, "anchor": measured.anchor_s}
        self.write({"point": index, **line})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def _read(self, identity: dict[str, Any]) -> int:
        """Fill in `found`; the number of bytes that are whole lines."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:whole].splitlines(), 1):
            parsed = self._parsed(line, number)
            if number == 1:
                self._check(identity, parsed)
            else:
                self._take(parsed, number)
        return whole

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._invalid(number)
        return value

    def _check(self, identity: dict[str, Any], first: dict[str, Any]) -> None:
        theirs = first.get("identity")
        if not isinstance(theirs, dict):
            raise self._invalid(1)
        for key in identity.keys() | theirs.keys():
            if identity.get(key) != theirs.get(key):
                raise UsageError(
                    f"{self.path}: is of {key} {str(theirs.get(key))[:80]!r}, not {str(identity.get(key))[:80]!r}; "
                    "--force begins anew"
                )

    def _take(self, line: dict[str, Any], number: int) -> None:
        try:
            index = line["point"]
            if "step" in line:
                if index != len(self.found):
                    raise ValueError(index)
                self.found.append(Measured.from_dict(line))
            else:
                self.found[index].samples.append(float(line["seconds"]))
                self.found[index].active_experts = line["active"]
                self.found[index].anchor_s = line["anchor"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._invalid(number) from error

    def _invalid(self, number: int) -> InvalidInputError:
        what = "not a line that a profiling run wrote; --force begins anew"
        return InvalidInputError([Problem(file=str(self.path), line=number, column="", value="", allowed=what)])


def unfinished(found: Iterable[Measured], repeats: int) -> list[int]:
    """Indices of points that lack times."""
    return [i for i, one in enumerate(found) if not one.censored and len(one.samples) < repeats]
