"""This package decides who runs now.

It holds the views, the `Policy` base class, the registry, the decide-apply loop and the shipped
rules.
"""

from loramux_policies.errors import PlanError, PolicyError
from loramux_policies.old_names import MOVED
from loramux_policies.policy import Policy
from loramux_policies.registry import create, load_file, names, register
from loramux_policies.rule_helpers import fuse_all, start_in_order, start_or_preempt
from loramux_policies.views import (
    Changes,
    ClusterView,
    DeviceView,
    Entry,
    FusedStep,
    JobView,
    Order,
    Plan,
    ReadyJob,
    StaleViewError,
)
from loramux_traces.moved import moved

__all__ = [
    "Changes",
    "ClusterView",
    "DeviceView",
    "Entry",
    "FusedStep",
    "JobView",
    "Order",
    "Plan",
    "PlanError",
    "Policy",
    "PolicyError",
    "ReadyJob",
    "StaleViewError",
    "create",
    "fuse_all",
    "load_file",
    "names",
    "register",
    "start_in_order",
    "start_or_preempt",
]

moved("loramux_policies", MOVED)
