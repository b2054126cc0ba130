"""This module holds processor sharing, which gives equal shares to all jobs."""

from __future__ import annotations

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.views import ClusterView, Plan


@register("ps")
class ProcessorSharing(Policy):
    """Run every job that fits at once, with equal shares.

    What does not fit waits in arrival order, and may be passed. The queue is searched to its end,
    so a small job passes any number of large ones, and a decision costs as much as the queue is
    long.
    """

    def place(self, view: ClusterView) -> Plan:
        """Start every waiting job that fits."""
        plan = view.plan()
        # starts only take room away: a job that is like one that did not fit does not fit either
        refused = set()
        for job in view.waiting(view.n_waiting):
            like = (job.base_model, job.need_bytes, job.own_bytes, job.num_gpus, job.method, job.tokens_per_step)
            if like in refused:
                continue
            device_id = next(plan.candidates(job.job_id, "least-loaded"), None)
            if device_id is None:
                refused.add(like)
            else:
                plan.start(job.job_id, device_id)
        return plan
