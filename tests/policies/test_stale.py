"""What a policy keeps of one call must not answer in the next.

Views, windows on the queue, iterators, plans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from loramux_policies import Plan, Policy, PolicyError, StaleViewError
from loramux_policies.views import ClusterView
from loramux_simulator import simulate

from .test_adversaries import TRACE, starting


@pytest.mark.parametrize("use", ["now_s", "waiting", "residents", "snapshot", "plan", "preemptible", "n_waiting"])
def test_a_stale_view(use: str) -> None:
    class Villain(Policy):
        kept: ClassVar[list[ClusterView]] = []

        def place(self, view: ClusterView) -> Plan:
            self.kept.append(view)
            old = self.kept[0]
            if old is not view:
                found = getattr(old, use)
                if callable(found):
                    arguments = {"waiting": (1,), "residents": (0,), "preemptible": ("attained_s", 0.0)}.get(use, ())
                    list(found(*arguments))
            return starting(view)

    with pytest.raises(PolicyError, match=r"Villain .*StaleViewError") as caught:
        simulate(TRACE, Villain, devices="2xl4")
    assert isinstance(caught.value.__cause__, StaleViewError)


READS: dict[str, Callable[[Any], Any]] = {
    "first": lambda window: window[0],
    "slice": lambda window: window[:1],
    "len": len,
    "iterate": list,
    "membership": lambda window: "j0" in window,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_stale_window_on_the_queue(read: Callable[[Any], Any]) -> None:
    """Kept from one call to the next it would show jobs that have started since, or ended."""

    class Villain(Policy):
        kept: ClassVar[list[Any]] = []

        def place(self, view: ClusterView) -> Plan:
            self.kept.append(view.waiting(9))
            if len(self.kept) > 1:
                read(self.kept[0])
            return starting(view)

    with pytest.raises(PolicyError, match=r"Villain .*StaleViewError") as caught:
        simulate(TRACE, Villain, devices="2xl4")
    assert isinstance(caught.value.__cause__, StaleViewError)


def test_a_stale_iterator_of_the_queue() -> None:
    class Villain(Policy):
        kept: ClassVar[list[Any]] = []

        def place(self, view: ClusterView) -> Plan:
            if self.kept:
                list(self.kept[0])
            window = iter(view.waiting(9))
            next(window, None)
            self.kept.append(window)
            plan = view.plan()
            plan.review_at(view.now_s + 5.0)
            return plan

    with pytest.raises(PolicyError, match=r"Villain .*StaleViewError"):
        simulate(TRACE, Villain, devices="2xl4")


def test_a_stale_plan() -> None:
    class Villain(Policy):
        kept: ClassVar[list[Plan]] = []

        def place(self, view: ClusterView) -> Plan:
            plan = starting(view)
            self.kept.append(plan)
            if len(self.kept) > 1:
                self.kept[0].pause("j0")
            return plan

    with pytest.raises(PolicyError, match="Villain"):
        simulate(TRACE, Villain, devices="2xl4")
