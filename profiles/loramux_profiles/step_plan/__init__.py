"""This package gives the dynamic memory of a fused step by formula."""

from loramux_profiles.step_plan.peak import StepPlan, plan_bytes, step_plan

__all__ = ["StepPlan", "plan_bytes", "step_plan"]
