"""What a test asks of a running scheduler and reads off its queue.

It asks from another connection.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import FaultPlan
from loramux_traces.locking import owned

from .serving import service

Ask = Callable[[Store], object]


def at_steps(state: Path, asks: dict[int, Ask]) -> FaultPlan:
    """Calls with a connection of its own before the n-th fused step."""
    done = [0]

    def fault(_: str, facts: dict[str, object]) -> None:
        done[0] += 1
        if done[0] in asks:
            other = Store(state)
            asks[done[0]](other)
            other.close()

    return FaultPlan(step=fault)


def states(store: Store) -> dict[str, str]:
    return {row["job_id"]: row["state"] for row in store.jobs()}


def answers(store: Store) -> list[tuple[str, str]]:
    rows = [store.answered(number) for number in range(1, 10)]
    return [(row["answer"], row["refused"]) for row in rows if row is not None]


def stop_after(store: Store, steps: int, **options: Any) -> None:
    """A scheduler under fifo that is stopped from outside after so many steps."""
    done = [0]

    def stop(_: str, facts: dict[str, object]) -> None:
        done[0] += 1
        if done[0] == steps:
            scheduler.driver.request_stop()

    with owned(store.folder):
        scheduler = service(store, "fifo", faults=FaultPlan(step=stop), **options)
        scheduler.play()
