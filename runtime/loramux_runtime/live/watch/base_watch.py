"""This module notices that the base model's folder has come to hold another model.

A running scheduler goes on with the weights and the tokenizer that it has loaded; the next start
would find others. So it is said while the model that the jobs began on can still be put back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_traces.errors import LoramuxError

EVERY_S: Final = 5.0
"""Seconds between two looks at the folder."""
_FILES: Final = ("*.json", "*.safetensors", "*.bin", "*.jinja", "*.model", "*.txt")
_TOKENIZER: Final = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja")
_SMALL_BYTES: Final = 64 << 20
"""Larger files of a tokenizer are not compared: they would take too long between two steps."""

State = tuple[int, int, int]


class BaseWatch:
    """Looks at a folder again and again; `changed` says what is another one, once something is.

    Files are hashed only where one has another inode, size or time than before.
    """

    def __init__(
        self,
        folder: Path | None,
        warn: Callable[[str], None],
        *,
        every_s: float = EVERY_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._warn = folder, warn
        self._every_s, self._clock_s = every_s, clock_s
        self._next_s = clock_s() + every_s
        self.changed: str | None = None
        if folder is not None:
            self._states, self._digests = _states(folder), _digests(folder)

    def look(self) -> None:
        """Take a look if one is due."""
        if self._folder is None or self.changed is not None or self._clock_s() < self._next_s:
            return
        self._next_s = self._clock_s() + self._every_s
        states = _states(self._folder)
        if states == self._states:
            return
        names = sorted(name for name in {*states, *self._states} if states.get(name) != self._states.get(name))
        self._states = states
        if _digests(self._folder) == self._digests:
            return
        self.changed = f"{self._folder}: the base model has changed on the disk ({', '.join(names[:3])})"
        self._warn(f"{self.changed}: jobs go on with the one that is loaded; put it back before the next start")


def _states(folder: Path) -> dict[str, State]:
    found = {}
    for path in {path for pattern in _FILES for path in folder.glob(pattern)}:
        try:
            about = path.stat()
        except OSError:
            continue
        found[path.name] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def _digests(folder: Path) -> tuple[str, str]:
    """Return what identifies the model and the tokenizer; an empty text where it is unreadable."""
    digest = hashlib.sha256()
    try:
        for path in sorted({path for pattern in _TOKENIZER for path in folder.glob(pattern)}):
            if path.is_file() and path.stat().st_size <= _SMALL_BYTES:
                digest.update(path.name.encode() + path.read_bytes())
        return fingerprint(folder), digest.hexdigest()
    except (OSError, LoramuxError):
        return "", ""
