"""This module reads and writes the files of one checkpoint.

They are tensors, facts, and a manifest of their SHA-256. safetensors does not notice a flipped bit,
so that every file is hashed; what is read is hashed first and used from memory, so that nothing can
change in between. No symlink is followed, nothing is unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from loramux_traces.errors import StateError
from loramux_traces.filesafe import sync


class UnreadableError(StateError):
    """Means that the disk does not give a file now (EIO, EACCES, ESTALE, ...).

    That says nothing against what is on the disk.
    """


SCHEMA: Final = 1
TENSORS: Final = "tensors.safetensors"
STATE: Final = "state.json"
MANIFEST: Final = "manifest.json"
_MAX_MANIFEST_BYTES: Final = 1 << 16
_MAX_STATE_BYTES: Final = 1 << 26
_CHUNK_BYTES: Final = 1 << 20
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Flags to open a file with; O_NONBLOCK: a pipe in its place is not waited for."""


def write_files(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], reach: Callable[[str], None]) -> None:
    """Write a checkpoint into a folder, which is made, and wait until all of it is on the disk.

    `reach` is told "tensors", "state", "manifest" and "synced" when each is done. Raises OSError,
    SafetensorError, and ValueError where `state` holds NaN.
    """
    text = _json(state)
    folder.mkdir()
    # this makes no copy on the CPU
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(host, folder / TENSORS)
    reach("tensors")
    (folder / STATE).write_bytes(text)
    reach("state")
    files = {TENSORS: _described(folder / TENSORS), STATE: {"bytes": len(text), "sha256": _sha256(text)}}
    (folder / MANIFEST).write_bytes(_json({"schema_version": SCHEMA, "files": files}))
    reach("manifest")
    for path in (folder / TENSORS, folder / STATE, folder / MANIFEST, folder):
        sync(path)
    reach("synced")


def read_files(folder: Path, most_bytes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the state of a checkpoint.

    Every file has the size and hash that the manifest says. `most_bytes`: of the tensors' file.
    Raises StateError that says what is wrong, without the folder's name.
    """
    if not stat.S_ISDIR(_about(folder).st_mode):
        raise StateError("is no folder (symlinks are not followed)")
    data = _read(folder / MANIFEST, _MAX_MANIFEST_BYTES)
    manifest = _parsed(MANIFEST, data)
    if _json(manifest) != data:
        # nothing hashes the manifest, so that it has to be as we write it
        raise StateError(f"{MANIFEST} is not as it was written")
    if manifest.get("schema_version") != SCHEMA:
        raise StateError(f"{MANIFEST} has schema_version {manifest.get('schema_version')!r}, not {SCHEMA}")
    files = manifest.get("files")
    if not isinstance(files, dict) or files.keys() != {TENSORS, STATE}:
        raise StateError(f"{MANIFEST} does not list {TENSORS} and {STATE}")
    state = _parsed(STATE, _checked(folder / STATE, _MAX_STATE_BYTES, files[STATE]))
    data = _checked(folder / TENSORS, most_bytes, files[TENSORS])
    try:
        return load(data), state
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"{TENSORS} is no safetensors file ({error})") from error


def cannot_be_opened(folder: Path) -> str | None:
    """Return why the files of a checkpoint cannot be opened now, where they are there."""
    for name in (MANIFEST, STATE, TENSORS):
        try:
            with os.fdopen(os.open(folder / name, _READ), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    file.read(1)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                # a link is not followed: it is no file of a checkpoint, as its reader says
                return None
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def _checked(path: Path, most_bytes: int, expected: Any) -> bytes:
    data = _read(path, most_bytes)
    if not isinstance(expected, dict) or expected.get("bytes") != len(data):
        said = expected.get("bytes") if isinstance(expected, dict) else None
        raise StateError(f"{path.name} has {len(data)} bytes, its manifest says {said!r}")
    if expected.get("sha256") != _sha256(data):
        raise StateError(f"{path.name} does not have the SHA-256 that its manifest says")
    return data


def _read(path: Path, most_bytes: int) -> bytes:
    about = _about(path)
    if not stat.S_ISREG(about.st_mode):
        raise StateError(f"{path.name} is no regular file (symlinks are not followed)")
    if about.st_size > most_bytes:
        raise StateError(f"{path.name} has {about.st_size} bytes, expected at most {most_bytes}")
    try:
        with os.fdopen(os.open(path, _READ), "rb") as file:
            return file.read()
    except OSError as error:
        kind = StateError if error.errno in (errno.ENOENT, errno.ELOOP) else UnreadableError
        raise kind(f"{path.name} cannot be read ({error.strerror})") from error


def _about(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except FileNotFoundError as error:
        raise StateError(f"{path.name} is missing") from error
    except OSError as error:
        raise UnreadableError(f"{path.name} cannot be read ({error.strerror})") from error


def _described(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")) + "\n").encode()


def _parsed(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise StateError(f"{name} holds no JSON object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
