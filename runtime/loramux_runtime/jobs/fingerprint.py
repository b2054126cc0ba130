"""A fingerprint tells in milliseconds which model a folder holds.

Jobs go on only over the weights that they began on.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from loramux_traces.errors import InvalidInputError, StateError
from loramux_traces.files import MAX_SMALL, read_file

_BLOCK_BYTES: Final = 1 << 14
_BLOCKS: Final = 64
"""Blocks read of each file of weights, evenly spaced: 140 GB are not read whole."""
_WEIGHTS: Final = ("*.safetensors", "*.bin")


def fingerprint(folder: Path) -> str:
    """Return a SHA-256 that identifies the model of a folder.

    It is made of config.json, of the names and sizes of the weights' files, and of blocks all over
    each of them. Raises StateError where they cannot be read.
    """
    digest = hashlib.sha256()
    try:
        digest.update(read_file(folder / "config.json", MAX_SMALL, "a configuration"))
        for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
            if not path.is_file():
                raise StateError(f"{path}: must be a regular file")
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for block in range(_BLOCKS + 1):
                    file.seek(max(0, size - _BLOCK_BYTES) * block // _BLOCKS)
                    digest.update(file.read(_BLOCK_BYTES))
    except InvalidInputError as error:
        raise StateError(f"{folder}: the model cannot be read ({error})") from error
    except OSError as error:
        raise StateError(f"{folder}: the model cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
