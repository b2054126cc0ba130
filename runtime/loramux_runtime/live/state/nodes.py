"""This module tells files apart that have one name, one after the other."""

from __future__ import annotations

import os
from pathlib import Path

Node = tuple[int, int]
"""Device and inode of a file."""


def node(path: Path) -> Node | None:
    """Return the device and inode of a file or folder; None where there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino
