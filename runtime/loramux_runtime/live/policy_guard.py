"""This module decides what becomes of a policy that fails, hangs or stalls.

It also puts another policy in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from loramux_policies.errors import PolicyError
from loramux_policies.loop.blame import check_policy as check_attributes
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.policy import Policy
from loramux_policies.registry import create
from loramux_policies.stepping.driver import StepDriver
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.state.book import Book
from loramux_traces.errors import UsageError

FALLBACK: Final = "fifo"
STALL_S: Final = 30.0
"""Seconds after which an empty device is a stall and no plan.

That is a device that a policy leaves empty with a job waiting that fits.
"""


def check_live(policy: Policy, instead: str = "a live device has one base copy") -> Policy:
    """Return the policy, unless it needs a base copy per job.

    That is a UsageError, which ends with `instead`; PolicyError where one of its attributes means
    nothing, before anything else asks for it.
    """
    check_attributes(policy)
    if policy.copies == "separate" and policy.seats > 1:
        raise UsageError(f"policy {policy.name} gives every job a process of its own; {instead}")
    return policy


class PolicyGuard:
    """Puts fifo in the place of a policy that fails or stalls.

    It does not where such a policy is to end the scheduler.
    """

    def __init__(
        self,
        loop: Scheduler,
        driver: StepDriver[TrainingJob],
        book: Book,
        warn: Callable[[str], None],
        *,
        exits: bool,
        errors: int,
        empty_since_s: float,
    ) -> None:
        self._loop, self._driver, self._book, self._warn = loop, driver, book, warn
        self._exits = exits
        """Whether a failing policy ends the scheduler."""
        self.errors = errors
        """How many times a policy has failed since the state folder began."""
        self._empty_since_s = empty_since_s
        """Since when nothing runs although jobs wait."""

    def facts(self) -> dict[str, Any]:
        """Return what the scheduler says of its policy."""
        return {"policy": self._loop.policy.name, "policy_errors": self.errors}

    def excused(self, error: PolicyError) -> bool:
        """Go on under fifo and return True; False where the error is to end the scheduler."""
        self.errors += 1
        if self._exits or self._loop.policy.name == FALLBACK:
            return False
        self._warn(f"{error}; going on under {FALLBACK}")
        self._book.note({"t_s": self._driver.now_s, "event": "policy-error", "detail": str(error)})
        self.use_policy(FALLBACK)
        return True

    def use_policy(self, text: str) -> None:
        """Decide by another policy from now on; UsageError where there is no such policy."""
        before = self._loop.policy
        try:
            self._switch(check_live(create(text), f"{before.name} stays"))
        except PolicyError as error:
            self._switch(before)
            raise UsageError(f"{error}; {before.name} stays") from error
        self._book.note({"t_s": self._driver.now_s, "event": "policy", "detail": text})
        self._book.urgent = True

    def _switch(self, policy: Policy) -> None:
        self._driver.use_policy(policy)
        self._loop.use_policy(policy)

    def arrives(self) -> None:
        """Note that a job is about to join the queue: an empty queue is no stall."""
        if not self._loop.cluster.queue.count:
            self._empty_since_s = self._driver.now_s

    def boundary(self, now_s: float) -> bool:
        """Look at a step boundary for a stall; return True where another policy has taken over."""
        if self._loop.cluster.running or not self._loop.cluster.queue.count:
            self._empty_since_s = now_s
            return False
        if not self.stall_due(now_s):
            return False
        again = self.stalled()
        # where nothing fits, the guard looks again after as long a time
        self._empty_since_s = now_s
        return again

    def stall_due(self, now_s: float) -> bool:
        """Return whether to ask why nothing runs.

        It is not asked under fifo, which waits for its first job to fit where others have taken the
        memory.
        """
        cluster = self._loop.cluster
        if cluster.running or not cluster.queue.count or self._loop.policy.name == FALLBACK:
            return False
        return now_s - self._empty_since_s > STALL_S

    def stalled(self) -> bool:
        """Replace a policy that leaves an empty device to itself; return whether another took over.

        PolicyError where that is to end the scheduler.
        """
        if self._loop.policy.name == FALLBACK:
            return False
        cluster = self._loop.cluster
        free = [ledger for ledger in cluster.fleet if ledger.capacity > 0.0]
        fits = [job.job_id for job in cluster.queue if any(ledger.has_room(job.cost_on(0)) for ledger in free)]
        if not fits:
            return False
        self._empty_since_s = self._driver.now_s
        policy = self._loop.policy.name
        what = f"policy {policy} starts nothing although the device is empty and {fits[0]} fits it"
        error = PolicyError(what)
        if not self.excused(error):
            raise error
        return True
