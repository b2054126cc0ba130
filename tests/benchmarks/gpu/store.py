"""Results as lines of JSON, appended at once: a suite that was cut goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Store:
    """One file of results; a result's `key` says which case it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:  # the last line of a run that was killed
                    continue

    def has(self, key: str) -> bool:
        """Whether the case was measured (or failed) before."""
        return any(row["key"] == key for row in self.rows)

    def add(self, key: str, **facts: Any) -> None:
        """Keep a result."""
        row = {"key": key, **facts}
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
