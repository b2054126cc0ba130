"""This module says what a device driver must offer to the decide-apply loop.

SimPy and torch each implement the protocol, and the tests ship a fake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from loramux_policies.loop.job import Job
from loramux_traces.arrays import Floats


class Backend(Protocol):
    """A backend runs what the loop decided and tells how far each job has got.

    Times are in seconds from the start of the run. The backend calls `Scheduler.arrive`, `finish`
    and `evict` as those things happen, and then `Scheduler.decide`.
    """

    @property
    def now_s(self) -> float: ...
    def start(self, job: Job, devices: tuple[int, ...], share: float) -> None:
        """Bring the job's state onto the devices and let it take part from the next step on."""

    def set_share(self, job: Job, share: float) -> None:
        """Change a running job's share of its seat."""

    def stop(self, job: Job) -> None:
        """Take a running job off its devices at a step boundary.

        Its `done_steps` and `attained_s` are brought up to date.
        """

    def sync(self, job: Job) -> None:
        """Bring a running job's `done_steps` and `attained_s` up to date."""

    def progress(self) -> tuple[Sequence[Job | None], Floats, Floats]:
        """Return all running jobs with their attained and their predicted remaining solo seconds.

        A job that is None is an empty slot, and its values are -inf.
        """

    def finish_s(self, job: Job) -> float:
        """Return the predicted finish of a running job if nothing changes."""

    def review_at(self, t_s: float) -> None:
        """Call `decide` when the time `t_s` is reached."""

    def review_when(self, job: Job, attained_s: float) -> None:
        """Call `decide` when the running job has attained that much service."""
