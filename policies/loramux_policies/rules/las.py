"""This module holds least attained service, for when sizes are unknown.

It is also called foreground-background (Nuyens and Wierman 2008).
"""

from __future__ import annotations

from math import inf
from typing import ClassVar, Final

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._las_exact import SLICES_PER_JOB, shared_seats
from loramux_policies.rules._preempt import Worse, preempt_in_order, review_at_level
from loramux_policies.views import ClusterView, JobView, Order, Plan

SWITCHES_PER_QUANTUM: Final = 50
"""A quantum of 50 switches keeps the time lost to switching at 2%."""
LEAST_QUANTUM_S: Final = 60.0
"""Smallest quantum where switching costs anything at all.

No scheduler of training jobs slices finer than a minute.
"""
SLACK: Final = 1.0 - 1e-6
"""Factor on a limit, so that a review at it finds its resident past it, whatever the rounding."""


@register("las")
class LeastAttainedService(Policy):
    """Run the jobs with the least attained service, preemptively; no predicted sizes are needed.

    A waiting job with `a` seconds of service displaces a resident once that one has a +
    max(quantum, growth * a). `quantum_s`: default 50 x the cost of one pause and resume, at least
    60 s. `growth`: makes later slices longer, so that a job of n quanta is paused about log n
    times, not n times; 0 gives slices of one length. With free switching (--ideal) on one device
    with --max-resident, no quantum is needed: the jobs of the least level run, tied jobs share a
    seat equally, and the rule is exact foreground-background. Elsewhere, with free switching, the
    quantum is 1/16 of the waiting job's predicted size. `window`: blocked jobs before the rule
    gives up.
    """

    order = Order(key=lambda job: (job.attained_s,))
    preempts: ClassVar[bool] = True
    slices: ClassVar[bool] = True

    def __init__(self, quantum_s: float | None = None, growth: float = 1.0, window: int = 16) -> None:
        if quantum_s is not None and not 0.0 < quantum_s < inf:
            raise ValueError(f"quantum_s must be above 0, not {quantum_s}")
        if not 0.0 <= growth < inf:
            raise ValueError(f"growth must not be negative, not {growth}")
        self.quantum_s = quantum_s
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.growth = growth
        self.window = window

    def place(self, view: ClusterView) -> Plan:
        """Run the jobs with the least attained service, exactly where that is possible."""
        if self.quantum_s is not None or view.n_devices > 1 or view.max_resident == inf:
            return self._sliced(view)
        first = next(iter(view.residents(0) or view.waiting(view.n_waiting)), None)
        if first is not None and view.switch_s(first.job_id) > 0.0:
            return self._sliced(view)
        return shared_seats(view)

    def _limit_s(self, view: ClusterView, job: JobView) -> float:
        """Return the service at which a resident makes way for this waiting job."""
        quantum_s = self.quantum_s
        if quantum_s is None:
            switch_s = view.switch_s(job.job_id)
            quantum_s = max(SWITCHES_PER_QUANTUM * switch_s, LEAST_QUANTUM_S) if switch_s > 0.0 else 0.0
            quantum_s = quantum_s or job.solo_s / SLICES_PER_JOB
        return job.attained_s + max(quantum_s, self.growth * job.attained_s)

    def _sliced(self, view: ClusterView) -> Plan:
        plan = view.plan()

        def richer(job: JobView) -> Worse:
            above = self._limit_s(view, job) * SLACK
            return Worse(view.preemptible("attained_s", above=above), lambda resident: resident.attained_s, above)

        blocked, started = preempt_in_order(view, plan, richer, window=self.window)
        if blocked is not None:
            review_at_level(view, plan, started, self._limit_s(view, blocked), SLACK)
        return plan
