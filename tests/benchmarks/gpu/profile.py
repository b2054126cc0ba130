"""The part `profile` measures fused steps of the usual models into journals.

`loramux profile --from-journal` turns them into records where pydantic and SciPy are.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from gpu.points import SEED, load_points, points_text, shrunk
from gpu.store import Store
from gpu.timing import clear
from gpu.workload import TINY, load
from loramux_profiles.shape_catalog import load_shape
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import StepPoint
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.identity import describe_run
from loramux_runtime.profiler.journal import Journal, record_block, unfinished
from loramux_runtime.profiler.measure import Measured
from loramux_runtime.profiler.transfers import SIZES, sample_transfers
from loramux_traces.errors import LoramuxError

MODELS: Final = ("llama-7b", "tinyllama-1.1b", "llama-3-8b")
BLOCK: Final = 8
REPEATS: Final = 5
TRANSFERS_AFTER: Final = 64
"""Timed steps: a call that is cut short then has the transfers too."""
TRANSFERS_S: Final = 90.0
"""Time that they are left. Without the largest adapter, whose 10 GB would take a minute of their
own.
"""
FAULTS: Final = 5
"""Steps that may fail for another reason than memory before a call gives up on the model."""
TINY_POINTS: Final = 21
"""One more than a fit needs."""


def profile(store: Store, out: Path, device: torch.device, left: Callable[[], float], *, tiny: bool) -> None:
    """Measure what is left of each model in turn; ends within the time that is `left`."""
    for name in MODELS[:1] if tiny else MODELS:
        if store.has(f"profile {name} complete"):
            continue
        if left() < 60 and not tiny:
            return
        start = time.monotonic()
        clear(device)
        run = _Run(name, store, device, left, tiny=tiny)
        error, complete = None, False
        try:
            complete = run.measure(out / f"profile-{name}.jsonl")
        except LoramuxError as refused:  # a journal of another commit, card or version, or a damaged one
            error = str(refused)[:300]
        store.add(
            f"profile {name} {'complete' if complete else len(store.rows)}",
            part="profile",
            error=error,
            seconds=time.monotonic() - start,
            **run.counts(),
        )


class _Run:
    """One model in one call."""

    def __init__(self, name: str, store: Store, device: torch.device, left: Callable[[], float], *, tiny: bool) -> None:
        self._name, self._store, self._device, self._left, self._tiny = name, store, device, left, tiny
        self._points = [shrunk(point) for point in load_points()[:TINY_POINTS]] if tiny else load_points()
        self._repeats = 2 if tiny else REPEATS
        self._found: list[Measured] = []
        self._longest = 0.0

    def counts(self) -> dict[str, int]:
        """What the journal holds."""
        untimed = len(unfinished(self._found, self._repeats))
        censored = sum(one.censored for one in self._found)
        return {"points": len(self._found), "timed": len(self._found) - untimed - censored, "censored": censored}

    def measure(self, path: Path) -> bool:
        """Go on with the journal; whether everything is measured."""
        base = load(self._name, self._device, tiny=self._tiny)
        model = FusedModel(base)
        dtype = "bf16" if self._device.type == "cuda" else "fp32"
        identity = describe_run(_shape(self._name, self._tiny), dtype, self._device, "", exact=model.exact, seed=SEED)
        identity["points"] = hashlib.sha256(points_text(self._points).encode()).hexdigest()
        identity["repeats"] = self._repeats
        with Journal(path, identity, resume=True) as journal:
            self._found = journal.found
            journal.note("date", datetime.datetime.now(datetime.UTC).date().isoformat())
            return self._steps(model, journal) and self._transfers(model, journal, 0)

    def _steps(self, model: FusedModel, journal: Journal) -> bool:
        failed = {point for i, point in enumerate(self._points) if self._store.has(self._failure(i))}
        known = {one.point for one in journal.found} | failed
        queue = [journal.found[i] for i in unfinished(journal.found, self._repeats)]
        queue = [one for one in queue if one.point not in failed]
        queue += [Measured(point=point) for point in self._points if point not in known]
        faults = 0
        while queue:
            if self._left() < max(20.0, 1.5 * self._longest) and not self._tiny:
                return False
            block = queue[:BLOCK]
            start = time.monotonic()
            error = _measured(journal, model, block, self._repeats)
            clear(self._device)
            self._longest = max(self._longest, time.monotonic() - start)
            if error is None:
                queue = queue[BLOCK:]
                self._transfers(model, journal, TRANSFERS_AFTER)
                continue
            faults += 1
            guilty = self._give_up(block, error)
            queue = [one for one in queue if one.point not in guilty]
            if faults == FAULTS:
                return False
        return True

    def _give_up(self, block: Sequence[Measured], error: str) -> list[StepPoint]:
        """Never try again what failed: the step without a peak, or else all that lack times."""
        guilty = [one.point for one in block if not one.memory][:1]
        guilty = guilty or [block[i].point for i in unfinished(block, self._repeats)]
        for point in guilty:
            self._store.add(self._failure(self._points.index(point)), part="profile", error=error)
        return guilty

    def _failure(self, point: int) -> str:
        return f"profile {self._name} failed {point}"

    def _transfers(self, model: FusedModel, journal: Journal, after: int) -> bool:
        """Measure the transfers once `after` steps are timed; say whether they are done with."""
        key = f"profile {self._name} failed transfers"
        if "transfers" in journal.notes or self._store.has(key):
            return True
        if self.counts()["timed"] < after or (self._left() < TRANSFERS_S and not self._tiny):
            return False
        error: str | None = None
        try:
            journal.note("transfers", sample_transfers(model, SIZES[:3], 3))
        except (RuntimeError, OSError) as failure:  # no room in memory or in the folder for temporary files
            error = str(failure)[:300]
        if error is not None:
            self._store.add(key, part="profile", error=error)
        clear(self._device)
        return True


def _measured(journal: Journal, model: FusedModel, block: Sequence[Measured], repeats: int) -> str | None:
    """Measure a block; what it failed of, out of memory aside."""
    try:
        record_block(journal, model, block, repeats=repeats, seed=SEED)
    except (RuntimeError, ValueError) as failure:
        return f"{type(failure).__name__}: {failure}"[:300]
    return None


def _shape(name: str, tiny: bool) -> ModelShape:
    shape = load_shape(name)
    if not tiny:
        return shape
    sizes: dict[str, Any] = {
        "hidden": TINY["hidden_size"],
        "ffn": TINY["intermediate_size"],
        "layers": TINY["num_hidden_layers"],
        "heads": TINY["num_attention_heads"],
        "kv_heads": TINY["num_key_value_heads"],
        "head_dim": TINY["head_dim"],
        "vocab": TINY["vocab_size"],
    }
    return dataclasses.replace(shape, name=f"{name}-tiny", **sizes)
