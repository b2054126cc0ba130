"""This module takes up what a scheduler's process before this one has left in the queue."""

from __future__ import annotations

from loramux_runtime.live.state.job_rows import HELD, QUEUED, RUNNING, WAITING
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.suspects import Suspects


def take_up(store: Store, suspects: Suspects, *, policy: str, n_devices: int) -> None:
    """Have the jobs that ran wait, and count how the last process ended, in one transaction.

    `policy`: of this process, in the form of --policy.
    """
    last_s = store.fact("now_s")
    with store.transaction():
        for row in store.jobs(RUNNING):
            left = {"stopped_s": last_s, "tokens_per_s": None, "expected_finish_s": None}
            store.update(row["job_id"], state=WAITING, **left)
        if last_s is not None:
            # nobody was there from then on
            waiting = store.count(QUEUED, WAITING, HELD, by_s=last_s)
            store.add_samples((last_s, d, 0.0, 0, waiting) for d in range(n_devices))
        suspects.note()
        store.set_facts(
            starts=store.fact("starts", 0) + 1,
            restarts=store.fact("restarts", 0) + (last_s is not None and not suspects.ended_by_itself),
            policy=policy,
            hung_in_decide=False,
        )
