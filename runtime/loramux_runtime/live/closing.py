"""This module has the end of a scheduler written down, also while the queue's lock is held."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from loramux_runtime.live.state.store import Store
from loramux_traces.errors import BusyError

CLOSE_S: Final = 5.0
"""Seconds that the end of a scheduler waits for the queue's lock after a signal."""


def write_at_end(
    store: Store,
    write: Callable[[], None],
    *,
    stopped: Sequence[int],
    alive: Callable[[], None],
    warn: Callable[[str], None],
) -> None:
    """Write what is left, and wait for the queue's lock meanwhile: after a signal for seconds only.

    `stopped` are the signals that came, `alive` is called again and again while this waits. What
    could not be written is done again by the next process: the same steps give the same bits.
    """
    began_s = time.monotonic()

    def still_locked() -> None:
        alive()
        if stopped and time.monotonic() - began_s > CLOSE_S:
            raise BusyError(f"{store.folder}: another process holds the queue's lock")

    store.wait_for_lock(still_locked)
    try:
        write()
    except BusyError as error:
        warn(f"{error}: what was done since the last commit is not saved, and will be done again")
