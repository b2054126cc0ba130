"""Build a Trace from jobs, with one order and one hash for the same jobs.

The order and the hash do not depend on the order, the columns or the file format that the jobs came
in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, fields
from operator import attrgetter
from typing import Any, Final

from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.job import JobSpec, Trace

#: Columns of jobs.csv in the order of the schema.
COLUMNS: Final[tuple[str, ...]] = tuple(f.name for f in fields(JobSpec))


def _default_of(column: Field[Any]) -> Any:
    # A pydantic dataclass may keep its own FieldInfo as the standard default.
    value = column.default
    return getattr(value, "default", value)


#: Column -> the value it has where the file says nothing.
DEFAULTS: Final[dict[str, Any]] = {f.name: _default_of(f) for f in fields(JobSpec) if f.default is not MISSING}
REQUIRED: Final[tuple[str, ...]] = tuple(c for c in COLUMNS if c not in DEFAULTS)


def columns_in_use(jobs: Sequence[JobSpec]) -> tuple[str, ...]:
    """Return the required columns and those in which at least one job differs from the default."""
    used = list(REQUIRED)
    for column, default in DEFAULTS.items():
        get = attrgetter(column)
        if any(get(job) != default for job in jobs):
            used.append(column)
    return tuple(used)


def content_sha256(jobs: Sequence[JobSpec], columns: Sequence[str]) -> str:
    """Return the SHA-256 over the names of the columns and the values of the jobs.

    `jobs` must be in canonical order.
    """
    digest = hashlib.sha256(repr(tuple(columns)).encode())
    row = attrgetter(*columns)
    for start in range(0, len(jobs), 4096):
        chunk = "\n".join([repr(row(job)) for job in jobs[start : start + 4096]])
        digest.update(b"\n")
        digest.update(chunk.encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def build_trace(name: str, jobs: Iterable[JobSpec], *, provenance: str = "") -> Trace:
    """Sort by (submit_s, job_id), hash, and note the columns in use.

    Raises InvalidInputError for no jobs at all or for two jobs of one id.
    """
    ordered = sorted(jobs, key=attrgetter("submit_s", "job_id"))
    if not ordered:
        raise InvalidInputError(
            [Problem(file=name, line=0, column="", value="", allowed="a trace needs at least one job")]
        )
    if len({job.job_id for job in ordered}) != len(ordered):
        raise InvalidInputError(_duplicates(name, ordered))
    columns = columns_in_use(ordered)
    return Trace(
        name=name,
        jobs=tuple(ordered),
        provenance=" ".join(provenance.split()),
        sha256=content_sha256(ordered, columns),
        columns=columns,
    )


def _duplicates(name: str, jobs: Sequence[JobSpec]) -> list[Problem]:
    seen: set[str] = set()
    problems = []
    for job in jobs:
        if job.job_id in seen:
            problems.append(
                Problem(file=name, line=0, column="job_id", value=job.job_id, allowed="every job_id must be used once")
            )
        seen.add(job.job_id)
    return problems[:50]
