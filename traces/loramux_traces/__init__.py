"""This package defines what a job is and what a result is.

It holds the job schema, the readers, the importers, the generators and the result schema. Names
load on first use, because the command line imports `loramux_traces.errors` and must start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loramux_traces.canonical import build_trace
    from loramux_traces.data import philly_stats_path, sample_path
    from loramux_traces.errors import InvalidInputError, LoramuxError, Problem, UsageError
    from loramux_traces.generators import generate
    from loramux_traces.importers import import_trace
    from loramux_traces.job import JobSpec, Trace
    from loramux_traces.reader import read_trace
    from loramux_traces.writer import write_trace

_HOME = {
    "InvalidInputError": "errors",
    "JobSpec": "job",
    "LoramuxError": "errors",
    "Problem": "errors",
    "Trace": "job",
    "UsageError": "errors",
    "build_trace": "canonical",
    "generate": "generators",
    "import_trace": "importers",
    "philly_stats_path": "data",
    "read_trace": "reader",
    "sample_path": "data",
    "write_trace": "writer",
}

__all__ = [
    "InvalidInputError",
    "JobSpec",
    "LoramuxError",
    "Problem",
    "Trace",
    "UsageError",
    "build_trace",
    "generate",
    "import_trace",
    "philly_stats_path",
    "read_trace",
    "sample_path",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
