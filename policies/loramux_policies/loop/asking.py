"""How a policy is asked for a plan, and what its failures become."""

from __future__ import annotations

from collections.abc import Callable

from loramux_policies.errors import LeftTheRecord, PolicyError, let_through
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.plan import DeltaPlan
from loramux_policies.policy import Policy

OnPlan = Callable[[LiveView, DeltaPlan], None]
"""Sees the view, still open, and the plan of every decision (contract tests, recording)."""


def ask(policy: Policy, view: LiveView, on_plan: OnPlan | None) -> DeltaPlan:
    """Return the policy's plan for this view, which is closed then.

    PolicyError, with the policy's name and the time, where it fails or returns no plan of the view.
    """
    try:
        plan = policy.place(view)
        if on_plan is not None and isinstance(plan, DeltaPlan):
            on_plan(view, plan)
    except PolicyError as error:
        raise PolicyError(f"policy {policy.name} at {view._now_s:.3f} s: {error}") from error
    except LeftTheRecord:  # not the policy's doing
        raise
    except BaseException as error:
        let_through(error)
        what = f"raised {type(error).__name__}: {error}"
        raise PolicyError(f"policy {policy.name} at {view._now_s:.3f} s {what}") from error
    finally:
        view.close()
    if not isinstance(plan, DeltaPlan) or plan not in view.plans:
        what = f"place() must return a plan made by this view's plan(), not {plan!r}"
        raise PolicyError(f"policy {policy.name}: {what}")
    return plan
