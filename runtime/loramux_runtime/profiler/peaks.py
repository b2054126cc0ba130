"""This module remembers peaks of steps on fake tensors on disk.

A 7B step takes seconds to run and never changes. An entry is one small JSON file, named by the
digest of everything that the peak depends on: the model's configuration, the type of its weights,
the step, the versions of torch and transformers, and the code of the runtime. An entry that cannot
be read, or is of something else, counts as none and is written anew. Importing this needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from loramux_profiles import step_point, widths
from loramux_profiles.step_point import StepPoint
from loramux_traces.errors import StateError, UsageError
from loramux_traces.filesafe import json_text, write_text

if TYPE_CHECKING:
    from loramux_runtime.profiler.fake import FakeStep

SCHEMA_VERSION: Final = 1
Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePeak:
    """Holds the bytes of a step, as `step.Peak` does, and where they come from."""

    weights: int
    state: int
    dynamic: int
    cached: bool


def cache_folder(folder: Path | None = None) -> Path:
    """Return the folder of the entries: `folder`, or that of the user's cache.

    The user's is XDG_CACHE_HOME/loramux/estimates, or ~/.cache/loramux/estimates.
    """
    if folder is not None:
        return folder
    home = os.environ.get("XDG_CACHE_HOME", "")
    # the standard says to ignore a relative XDG_CACHE_HOME
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "loramux" / "estimates"


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the SHA-256 of the code that a step's memory depends on.

    Unlike a commit, it is right in a changed checkout too.
    """
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    files = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
    for file in [*files, *(Path(str(module.__file__)) for module in (step_point, widths))]:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


class FakePeaks:
    """Gives the peaks of steps of one base.

    `model` is all that its configuration consists of, as JSON. `build` gives its configuration of
    transformers, and is called only where a step has to be run.
    """

    def __init__(
        self,
        model: dict[str, Any],
        build: Callable[[], Any],
        *,
        dtype: Dtype,
        exact: bool = False,
        folder: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._identity = {
            "schema_version": SCHEMA_VERSION,
            "model": model,
            "dtype": dtype,
            "exact": exact,
            "torch": _installed("torch"),
            "transformers": _installed("transformers"),
            "code": code_digest(),
        }
        self._build, self._dtype, self._exact = build, dtype, exact
        self._folder = cache_folder(folder)
        self._tell = tell
        self._step: FakeStep | None = None
        self.runs = 0
        """Number of steps that were run, and not found on disk."""

    def peak(self, point: StepPoint) -> FakePeak:
        """Return the peak of a step.

        Raises UsageError where the model cannot be a base, or an adapter does not go with it.
        """
        identity = json_text({**self._identity, "step": point.to_dict()})
        key = hashlib.sha256(identity.encode()).hexdigest()
        file = self._folder / f"{key}.json"
        known = _read(file, key)
        if known is not None:
            return known
        found = self._run(point)
        entry = {"key": key, "weights": found.weights, "state": found.state, "dynamic": found.dynamic}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json_text({**entry, "check": _check(entry)}))
        except (OSError, StateError) as error:
            self._tell(f"note: the estimate is not kept: {error}")
        return found

    def _run(self, point: StepPoint) -> FakePeak:
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise UsageError("this runs the step on fake tensors: pip install 'loramux[runtime]', or give --quick")
        from loramux_runtime.profiler.fake import FakeStep

        begin = time.monotonic()
        if self._step is None:
            self._tell("building the model of fake tensors")
            self._step = FakeStep(self._build(), dtype=self._dtype, exact=self._exact)
        self._tell(f"running a step of {len(point.jobs)} jobs, {point.tokens:,} tokens, on fake tensors")
        try:
            peak = self._step.peak(point)
        except ValueError as error:
            raise UsageError(f"the step cannot be run: {error}") from error
        self.runs += 1
        self._tell(f"done in {time.monotonic() - begin:.1f} s")
        return FakePeak(weights=peak.weights, state=peak.state, dynamic=peak.dynamic, cached=False)


def _check(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json_text(entry).encode()).hexdigest()


def _read(file: Path, key: str) -> FakePeak | None:
    try:
        data = json.loads(file.read_bytes())
        check = data.pop("check")
        if data["key"] != key or check != _check(data):
            return None
        sizes = {name: data[name] for name in ("weights", "state", "dynamic")}
        if any(type(size) is not int or size < 0 for size in sizes.values()):
            return None
        return FakePeak(**sizes, cached=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
