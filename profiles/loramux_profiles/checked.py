"""This module reads or makes a trace and checks that all names in it are known.

The names are models, reference devices and length distributions; they are checked row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loramux_profiles.devices import load_device
from loramux_profiles.lengths import length_dist
from loramux_profiles.shape_catalog import load_shape
from loramux_traces.errors import InvalidInputError, LoramuxError
from loramux_traces.generators import generate as make
from loramux_traces.job import JobSpec, Trace
from loramux_traces.reader import folder_of, read_trace

Wrong = tuple[tuple[str, object, str], ...]


class KnownNames:
    """Says what of a job no cost model knows, as (column, value, what is allowed).

    Each name is looked up once.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: dict[tuple[str, str | None, str | None], Wrong] = {}

    def __call__(self, job: JobSpec) -> Wrong:
        """Return what is unknown of a job; the tuple is empty where all is known."""
        key = (job.base_model, job.length_dist, job.ref_gpu)
        found = self._seen.get(key)
        if found is None:
            found = self._seen[key] = tuple(self._look_up(*key))
        return found

    def _look_up(self, base_model: str, lengths: str | None, ref_gpu: str | None) -> list[tuple[str, object, str]]:
        wrong: list[tuple[str, object, str]] = []

        def look(column: str, name: str, find: Callable[[], object]) -> None:
            try:
                find()
            except InvalidInputError as error:  # a config.json or a profile with faults of its own
                wrong.append((column, name, "; ".join(str(problem) for problem in error.problems)))
            except LoramuxError as error:
                wrong.append((column, name, str(error)))

        look("base_model", base_model, lambda: load_shape(base_model, self._folder))
        if lengths is not None:
            look("length_dist", lengths, lambda: length_dist(100.0, None, lengths))
        if ref_gpu is not None:
            look("ref_gpu", ref_gpu, lambda: load_device(ref_gpu))
        return wrong


def generate(kind: str, *, folder: str = "", **options: Any) -> Trace:
    """Make a modelled trace as `loramux_traces.generate` does, of names that are known.

    Relative paths of models start at `folder`. Raises UsageError with the nearest known name.
    """
    return make(kind, check=KnownNames(folder), **options)


def read_checked(path: Path | str, **options: Any) -> Trace:
    """Read a trace as `read_trace` does, and check its names.

    Every name that no cost model knows is a problem of its row.
    """
    return read_trace(path, check=KnownNames(folder_of(path)), **options)
