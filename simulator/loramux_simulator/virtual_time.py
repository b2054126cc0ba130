"""Keep a device's virtual time, against which every resident moves at one speed.

So n residents cost one timer (as in GPS). A job's end is a fixed tag on the virtual clock; only the
clock's rate changes when residents come and go.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import Final

from loramux_policies.loop.job import Job
from loramux_profiles.work import JobCost

_SERIAL: Final = count()


class Run:
    """A Run is a job's stay on a device.

    Micro-steps done = (virtual time - start_tag) * per_unit - debt_micro, never below zero.
    """

    __slots__ = (
        "cost",
        "debt_micro",
        "done_micro",
        "end_tag",
        "epoch",
        "job",
        "left_micro",
        "per_unit",
        "slot",
        "start_tag",
        "synced_s",
        "watches",
    )

    def __init__(self, job: Job, cost: JobCost) -> None:
        self.job = job
        self.cost = cost
        self.done_micro = job.done_steps * cost.accumulation
        """Micro-steps done at `start_tag`."""
        self.left_micro = max(0.0, job.true_steps - job.done_steps) * cost.accumulation
        """Micro-steps left at `start_tag`, without the debt."""
        self.debt_micro = 0.0
        """Loading time of a separate process, in micro-steps of its own."""
        self.per_unit = 1.0
        """Micro-steps per unit of virtual time."""
        self.start_tag = 0.0
        self.end_tag = 0.0
        self.epoch = 0
        self.synced_s = -1.0
        """Time up to which the job's own figures are known."""
        self.slot = -1
        self.watches: list[float] = []
        """Micro-steps at which a review is due."""

    def tag_of(self, micro: float) -> float:
        """Return the virtual time at which the run will have done so many micro-steps."""
        return self.start_tag + (micro - self.done_micro + self.debt_micro) / self.per_unit

    def progress(self, virtual: float) -> float:
        """Return the micro-steps done since `start_tag`."""
        done = (virtual - self.start_tag) * self.per_unit - self.debt_micro
        return min(done, self.left_micro) if done > 0 else 0.0

    def rebase(self, virtual: float, per_unit: float) -> None:
        """Count from this virtual time on, at another speed."""
        gone = (virtual - self.start_tag) * self.per_unit
        done = self.progress(virtual)
        self.debt_micro = max(0.0, self.debt_micro - gone)
        self.done_micro += done
        self.left_micro -= done
        self.start_tag = virtual
        self.synced_s = -1.0
        self.set_speed(per_unit)

    def set_speed(self, per_unit: float) -> None:
        """Set the speed, which fixes the end on the virtual clock."""
        self.per_unit = per_unit
        self.end_tag = self.start_tag + (self.left_micro + self.debt_micro) / per_unit
        self.epoch += 1


class VirtualClock:
    """A VirtualClock relates virtual time to real time: `rate` units per second from `at_s` on.

    `at_s` lies ahead while the device stalls.
    """

    __slots__ = ("at_s", "rate", "tags", "virtual")

    def __init__(self) -> None:
        self.virtual = 0.0
        self.at_s = 0.0
        self.rate = 0.0
        self.tags: list[tuple[float, str, int, int, Run, bool]] = []

    def read(self, now_s: float) -> float:
        """Return the virtual time at `now_s`."""
        return self.virtual + self.rate * (now_s - self.at_s) if now_s > self.at_s else self.virtual

    def advance(self, now_s: float) -> float:
        """Move to `now_s` and return the virtual time gone by."""
        if now_s <= self.at_s:
            return 0.0
        gone = self.rate * (now_s - self.at_s)
        self.virtual += gone
        self.at_s = now_s
        return gone

    def stall(self, now_s: float, seconds: float) -> None:
        """Let nothing move for that long (loading, copying)."""
        self.at_s = (now_s if now_s > self.at_s else self.at_s) + seconds

    def reset(self) -> None:
        """Start from zero on an empty device, so that tags keep their precision over a long run."""
        self.virtual = 0.0
        self.rate = 0.0
        self.tags.clear()

    def push_end(self, run: Run) -> None:
        """Put the run's end among the tags."""
        heappush(self.tags, (run.end_tag, run.job.job_id, next(_SERIAL), run.epoch, run, True))

    def push_watch(self, run: Run, tag: float) -> None:
        """Put a point of interest of the run among the tags."""
        heappush(self.tags, (tag, run.job.job_id, next(_SERIAL), run.epoch, run, False))

    def next_tag(self) -> float | None:
        """Return the earliest tag that still counts."""
        tags = self.tags
        while tags:
            entry = tags[0]
            if entry[3] == entry[4].epoch:
                return entry[0]
            heappop(tags)
        return None

    def due_s(self, tag: float) -> float:
        """Return the real time of a tag at the present rate."""
        if self.rate <= 0.0:
            return float("inf")
        ahead = tag - self.virtual
        return self.at_s + ahead / self.rate if ahead > 0.0 else self.at_s

    def reach(self, tag: float, now_s: float) -> list[tuple[Run, bool]]:
        """Set the clock to the tag its timer was for, and take every tag up to it.

        Returns (run, whether the tag is its end) for each tag.
        """
        if self.virtual < tag:
            self.virtual = tag
        if now_s > self.at_s:
            self.at_s = now_s
        tags, virtual = self.tags, self.virtual
        reached: list[tuple[Run, bool]] = []
        while tags and tags[0][0] <= virtual:
            _, _, _, epoch, run, is_end = heappop(tags)
            if epoch == run.epoch:
                reached.append((run, is_end))
        return reached
