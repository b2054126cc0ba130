"""This module starts what looks on while a live scheduler runs.

That is Prometheus, TensorBoard, and the memory that other processes leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loramux_profiles.cost import CostModel
from loramux_profiles.devices import DeviceProfile
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.memory_watch import CapacityGuard, CudaWatch, HostWatch
from loramux_runtime.live.watch.prometheus import write_prometheus
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.live.watch.tensorboard import TensorBoardLog
from loramux_traces.errors import StateError

EVERY_S = 5.0
"""Seconds between two Prometheus files: their text takes up to 35 ms for 1,000 jobs."""


@dataclass(frozen=True)
class Watchers:
    """Holds what a scheduler (`LiveService`) calls."""

    on_flush: tuple[Callable[[], None], ...] = ()
    on_record: Callable[[str, Mapping[str, Any]], None] | None = None


@contextmanager
def watched(
    store: Store, prometheus: Path | None, tensorboard: Path | None, warn: Callable[[str], None]
) -> Iterator[Watchers]:
    """Start the watchers that are asked for; UsageError where one of them is not installed.

    `warn` is told when they cannot write.
    """
    with _prometheus(store, prometheus, warn) as on_flush, _tensorboard(tensorboard, warn) as on_record:
        yield Watchers(on_flush, on_record)


@contextmanager
def _tensorboard(
    folder: Path | None, warn: Callable[[str], None]
) -> Iterator[Callable[[str, Mapping[str, Any]], None] | None]:
    if folder is None:
        yield None
        return

    log = TensorBoardLog(folder)

    def on_record(job_id: str, row: Mapping[str, Any]) -> None:
        before = log.problem
        log.record(job_id, dict(row))
        if log.problem is not None and log.problem != before:
            warn(log.problem)

    try:
        yield on_record
    finally:
        log.close()


@contextmanager
def _prometheus(
    store: Store, path: Path | None, warn: Callable[[str], None]
) -> Iterator[tuple[Callable[[], None], ...]]:
    """Write the file every few seconds, and once more when the scheduler ends.

    The last file says that nobody is there any more.
    """
    if path is None:
        yield ()
        return

    last = [float("-inf")]

    def write(*, ended: bool = False) -> None:
        if not ended and time.monotonic() - last[0] < EVERY_S:
            return
        last[0] = time.monotonic()
        try:
            write_prometheus(path, read_status(store, ended=ended))
        except StateError as error:
            # a full disk must not end the training
            warn(str(error))

    try:
        yield (write,)
    finally:
        write(ended=True)


def memory_guard(device: torch.device, profile: DeviceProfile) -> CapacityGuard:
    """Make a guard that notices what other processes take of the device's memory."""

    context = float(profile.parameters["context_bytes"].value)
    watch = CudaWatch(device, context_bytes=context) if device.type == "cuda" else HostWatch()
    return CapacityGuard(watch, float(CostModel(profile).capacity_bytes))
