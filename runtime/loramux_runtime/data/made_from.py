"""This module says what a job's rows were made from, so that a change can be named.

A job that goes on must find the rows that it began with. Where it does not, two of these records,
one of its beginning and one of today, say what is another one now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

from loramux_runtime.data.source import file_sha256
from loramux_runtime.data.tokenizer import Tokenizer

#: Raised whenever loramux makes other rows of the same file.
ROWS_VERSION: Final = 3
_LIBRARIES: Final = ("tokenizers", "transformers", "jinja2")


def made_from(path: Path, eval_path: Path | None, tokenizer: Tokenizer, rendered_at: datetime) -> dict[str, str]:
    """Return everything that rows depend on beside the job's settings: a value for each name.

    A value is a SHA-256 or a version. The date is there only where the chat template may write it.
    """
    parts = {"the data file": file_sha256(path)}
    if eval_path is not None:
        parts["the held-out file"] = file_sha256(eval_path)
    parts |= of_tokenizer(tokenizer)
    if tokenizer.has_chat_template and tokenizer.tells_time:
        parts["the date"] = rendered_at.astimezone(UTC).isoformat()
    parts.update(_libraries())
    parts["how loramux makes rows"] = str(ROWS_VERSION)
    return parts


def of_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    """Return what rows depend on of a tokenizer: a SHA-256 for each name."""
    parts = {"the tokenizer": tokenizer.sha256}
    if tokenizer.has_chat_template:
        template = tokenizer.chat_source
        parts["the chat template"] = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
    return parts


@cache
def _libraries() -> dict[str, str]:
    # looked up once: each look parses a package's whole description
    return {f"the library {name}": version(name) for name in _LIBRARIES}


def what_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return in words what is not as it was; empty where all is equal."""
    said = []
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name, "none"), now.get(name, "none")
        if old != new:
            said.append(name if len(old) == len(new) == 64 else f"{name} ({_short(old)} -> {_short(new)})")
    return ", ".join(said)


def _short(value: str) -> str:
    return value[:8] if len(value) == 64 else value
