"""This module holds the discretised two-dimensional LAS of Tiresias.

Source: Gu et al., NSDI 2019, section 3.2.
"""

from __future__ import annotations

from bisect import bisect_right
from math import inf
from typing import ClassVar

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._preempt import Worse, preempt_in_order, review_at_level
from loramux_policies.views import ClusterView, JobView, Order, Plan

SLACK = 1.0 - 1e-6
"""Factor on a threshold, so that a review at it finds its resident past it, despite rounding."""


@register("tiresias")
class Tiresias(Policy):
    """Serve queues by service x devices, first come, first served within a queue.

    This is discretised 2D least attained service. A job falls to the next queue when its attained
    seconds x devices pass a threshold. Only residents of a lower queue are displaced, so that jobs
    are paused at most once per queue and not in turns. `thresholds`: device-seconds, ascending,
    separated by `/` (default: the three limits of the authors' simulator). `window`: how many
    waiting jobs may be blocked before the rule gives up.
    """

    preempts: ClassVar[bool] = True

    def __init__(self, thresholds: str = "3250/7200/18000", window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window
        try:
            self.thresholds = [float(part) for part in str(thresholds).split("/")]
        except ValueError:
            raise ValueError(f"thresholds are numbers separated by '/', not {thresholds!r}") from None
        ascending = sorted(set(self.thresholds))
        if self.thresholds != ascending or ascending[0] <= 0.0 or not ascending[-1] < inf:
            raise ValueError(f"thresholds must be finite, above 0 and ascending, not {thresholds!r}")
        self.order = Order(key=lambda job: (self.queue_of(job),))

    def queue_of(self, job: JobView) -> int:
        """Return the number of the job's queue; 0 is the highest."""
        return bisect_right(self.thresholds, job.attained_s * job.num_gpus)

    def place(self, view: ClusterView) -> Plan:
        """Start jobs queue by queue; they displace residents of lower queues."""
        plan = view.plan()

        def lower(job: JobView) -> Worse:
            queue = self.queue_of(job)
            # gangs are never displaced, so service and service x devices are the same here; the
            # slack absorbs rounding
            above = self.thresholds[queue] * SLACK if queue < len(self.thresholds) else inf
            return Worse(view.preemptible("attained_s", above=above), lambda resident: resident.attained_s, above)

        blocked, started = preempt_in_order(view, plan, lower, window=self.window)
        queue = len(self.thresholds) if blocked is None else self.queue_of(blocked)
        # come back when the next resident falls below the queue of the job that waits
        if queue < len(self.thresholds):
            review_at_level(view, plan, started, self.thresholds[queue], SLACK)
        return plan
