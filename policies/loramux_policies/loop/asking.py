"""How a policy is asked for a plan, and what its failures become."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

from loramux_policies.errors import LeftTheRecord, PolicyError, let_through
from loramux_policies.loop.blame import TO_ASK, failed
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.policy import Policy
from loramux_policies.said import raised, text_of

OnPlan = Callable[[LiveView, DeltaPlan], None]
"""Sees the view, still open, and the plan of every decision (contract tests, recording)."""


def ask(policy: Policy, view: LiveView, on_plan: OnPlan | None) -> DeltaPlan:
    """Return the policy's plan for this view, which is closed then.

    PolicyError, with the policy's name, the time and what was there, where it fails or returns no
    plan of the view. What `on_plan` raises is not the policy's doing and passes.
    """
    now_s, cluster, pid = view._now_s, view._cluster, os.getpid()
    try:
        plan = policy.place(view)
    except PolicyError as error:  # of a plan's call: it says what to ask beforehand
        raise failed(policy, now_s, text_of(str(error), 1000), cluster) from error
    except LeftTheRecord:  # not the policy's doing
        raise
    except BaseException as error:
        let_through(error)
        raise failed(policy, now_s, f"place() {raised(error)}", cluster, TO_ASK) from error
    else:
        if on_plan is not None and isinstance(plan, DeltaPlan):
            on_plan(view, plan)
    finally:
        if os.getpid() != pid:
            # a process that the policy has forked came back: there would be two schedulers
            os._exit(1)
        view.close()
    if not isinstance(plan, DeltaPlan) or not any(plan is own for own in view._plans):
        what = f"place() must return a plan made by this view's plan(), not {text_of(plan, 120)}"
        if isinstance(plan, Generator):
            what += " (a `yield` makes place() a generator)"
        raise failed(policy, now_s, what, cluster)
    return plan
