"""This module holds shortest job first, in its three classical forms.

Each form also exists with the true end of every job as an oracle. Sizes are predicted seconds for
all declared steps, alone on the first device type. Schrage (1968) showed that shortest remaining
time is optimal for the mean response of one preemptive server with exact sizes.
"""

from __future__ import annotations

from typing import ClassVar, Final

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rule_helpers import start_in_order
from loramux_policies.rules._preempt import Worse, preempt_in_order
from loramux_policies.views import ClusterView, JobView, Order, Plan

TIE_DIGITS: Final = 9
TIE_S: Final = 10.0**-TIE_DIGITS
"""Remaining times closer than this are equal.

What is left is worked out from the clock, which rounds.
"""


class _Windowed(Policy):
    """Holds `window`: how many waiting jobs may be blocked before the rule gives up.

    With 1, nobody passes a blocked head.
    """

    def __init__(self, window: int = 1) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window


@register("sjf")
class ShortestJobFirst(_Windowed):
    """Run the shortest predicted job first, without preemption.

    `window`: how many waiting jobs may be blocked before the rule gives up (1: nobody passes a
    blocked head).
    """

    order = Order(key=lambda job: (job.solo_s,))

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the shortest on."""
        plan = view.plan()
        start_in_order(view, plan, window=self.window)
        return plan


@register("psjf")
class PreemptiveShortestJobFirst(_Windowed):
    """Run the shortest predicted job first, preempting the largest resident if it is larger.

    Jobs are compared by their original size, and only a strictly larger resident is displaced.
    `window`: how many waiting jobs may be blocked before the rule gives up (1: nobody passes a
    blocked head).
    """

    order = Order(key=lambda job: (job.solo_s,))
    preempts: ClassVar[bool] = True

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the shortest on; they displace larger residents."""
        plan = view.plan()

        def larger(job: JobView) -> Worse:
            return Worse(view.residents_after(job), lambda resident: resident.solo_s, job.solo_s)

        preempt_in_order(view, plan, larger, window=self.window)
        return plan


@register("srtf")
class ShortestRemainingTimeFirst(_Windowed):
    """Run the shortest predicted remaining time first, preempting the resident with most left.

    A resident is displaced only if it has strictly more left. `window`: how many waiting jobs may
    be blocked before the rule gives up (1: nobody passes a blocked head).
    """

    order = Order(key=lambda job: (round(job.remaining_s, TIE_DIGITS),), moves=True)
    preempts: ClassVar[bool] = True

    def place(self, view: ClusterView) -> Plan:
        """Start jobs from the least remaining time on; residents with more left make way."""
        plan = view.plan()

        def longer(job: JobView) -> Worse:
            limit_s = job.remaining_s + TIE_S
            residents = view.preemptible("remaining_s", above=limit_s)
            return Worse(residents, lambda resident: resident.remaining_s, limit_s)

        preempt_in_order(view, plan, longer, window=self.window)
        return plan


@register("sjf-oracle")
class OracleShortestJobFirst(ShortestJobFirst):
    """Run `sjf` with knowledge of where each job will really stop.

    It is an upper bound on what prediction could gain.
    """

    oracle: ClassVar[bool] = True


@register("psjf-oracle")
class OraclePreemptiveShortestJobFirst(PreemptiveShortestJobFirst):
    """Run `psjf` with knowledge of where each job will really stop.

    It is an upper bound on what prediction could gain.
    """

    oracle: ClassVar[bool] = True


@register("srtf-oracle")
class OracleShortestRemainingTimeFirst(ShortestRemainingTimeFirst):
    """Run `srtf` with knowledge of where each job will really stop.

    It is an upper bound on what prediction could gain.
    """

    oracle: ClassVar[bool] = True
