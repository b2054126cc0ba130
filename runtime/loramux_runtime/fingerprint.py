"""Which model a folder holds, told in milliseconds: jobs go on only over the weights that they began on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from loramux_traces.errors import StateError

_ENDS_BYTES: Final = 1 << 16
"""Read of each end of a file of weights: other weights differ there, and 140 GB are not read."""
_WEIGHTS: Final = ("*.safetensors", "*.bin")


def fingerprint(folder: Path) -> str:
    """SHA-256 of config.json, of the names and sizes of the weights' files, and of both ends of each. StateError where
    they cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update((folder / "config.json").read_bytes())
        for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_ENDS_BYTES))
                file.seek(max(0, size - _ENDS_BYTES))
                digest.update(file.read(_ENDS_BYTES))
    except OSError as error:
        raise StateError(f"{folder}: the model cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
