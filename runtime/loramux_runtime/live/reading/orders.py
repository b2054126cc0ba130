"""This module says what a scheduler asks of a reader of rows, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Fate = Literal["read", "refused", "changed", "disk"]
"""How an order ends: rows are there; they cannot be used; they are not those that the job began
with; or the state folder's disk does not take them."""
READ: Final = "read"
CHANGED: Final = "is not what it was when the job began"
"""Stands in the reason of a job that is held because its rows would be other ones now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Says which rows a job that has begun began with."""

    sha256: str
    """SHA-256 of the rows to train on."""
    kept: Mapping[str, Any] | None
    """Where the rows are kept (`row_files.RowFiles`); None for folders of older versions."""
    made_from: Mapping[str, str]
    """What the rows were made from (`data.made_from`)."""
    trusted: bool
    """Whether the job goes on with its kept rows, whatever its data file holds by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOrder:
    """Asks for the rows of one job."""

    number: int
    job_id: str
    config: Mapping[str, Any]
    """The job's configuration (`jobs_file.TrainJob`) as JSON values."""
    folder: str
    """Folder in which the job's relative paths start."""
    rendered_unix_s: float
    """The instant that a chat template writes where it asks for the date."""
    vocab_size: int
    longest_position: int | None = None
    """Tokens that the base model was made for, where that is known."""
    before: Before | None = None

    def values(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ReadOrder:
        """Return the order that these values describe."""
        before = values["before"]
        return cls(**{**values, "before": None if before is None else Before(**before)})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAnswer:
    """Says what became of an order."""

    number: int
    fate: Fate
    reason: str = ""
    """Why there are no rows to train on."""
    sha256: str = ""
    rows: int = 0
    mean_tokens: float = 0.0
    p95_tokens: float = 0.0
    longest_tokens: int = 0
    kept: Mapping[str, Any] | None = None
    made_from: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()
    """What a user should know of the rows: how many were cut, columns that are not used."""

    def values(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ReadAnswer:
        """Return the answer that these values describe."""
        return cls(**{**values, "notes": tuple(values.get("notes", ()))})
