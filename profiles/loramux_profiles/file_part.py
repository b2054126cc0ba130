"""Provide what the parts of our JSON files of numbers have in common.

JSON has types of its own, so a text or a truth value is no number there, and 1 is not true. (A
table of CSV has texts alone, and goes another way.)
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["FilePart", "Listed"]

Member = TypeVar("Member")
#: A JSON list, which pydantic's strict mode would not take for a tuple.
Listed = Annotated[tuple[Member, ...], Field(strict=False)]


class FilePart(BaseModel):
    """A FilePart knows all its fields, and takes each in its own type only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
