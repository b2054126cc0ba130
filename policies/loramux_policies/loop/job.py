"""This module holds the loop's own record of a job.

The record is mutable; policies only ever see `JobView`.
"""

from __future__ import annotations

from typing import Any

from loramux_policies.views import JobView
from loramux_profiles.work import JobCost
from loramux_traces.job import JobSpec

WAITING, RUNNING, DONE = 0, 1, 2


class Job:
    """A job is one record from submission to end.

    `steps` are optimizer steps. `costs` has one entry per device type (None: the job never fits
    it).
    """

    __slots__ = (
        "apart",
        "attained_s",
        "costs",
        "declared_steps",
        "devices",
        "done_steps",
        "enqueued_s",
        "first_start_s",
        "index",
        "job_id",
        "key",
        "last_stop_s",
        "need_bytes",
        "need_min",
        "oom_alone",
        "oom_events",
        "paused_s",
        "predicted_steps",
        "preemptions",
        "run",
        "seen",
        "share",
        "spec",
        "started_seq",
        "state",
        "tokens_done",
        "true_steps",
    )

    key: tuple[Any, ...]
    run: Any
    """What the backend keeps for a running job."""

    def __init__(
        self,
        index: int,
        spec: JobSpec,
        costs: tuple[JobCost | None, ...],
        declared_steps: float,
        predicted_steps: float,
        need_min: float,
        need_bytes: float,
    ) -> None:
        self.index = index
        self.job_id = spec.job_id
        self.spec = spec
        self.costs = costs
        self.declared_steps = declared_steps
        self.predicted_steps = predicted_steps
        """The steps that predictions are made with.

        They are the declared steps, blurred by --prediction-error, or the truth for an oracle.
        """
        self.true_steps = declared_steps if spec.stop_step is None else min(declared_steps, spec.stop_step)
        self.need_min = need_min
        """Bytes that any device must have free to take it: a necessary condition only."""
        self.need_bytes = need_bytes
        """Upper bound alone on the first device type that fits it, its base included."""
        self.state = WAITING
        self.devices: tuple[int, ...] = ()
        self.share = 1.0
        self.done_steps = 0.0
        self.attained_s = 0.0
        self.enqueued_s = spec.submit_s
        self.first_start_s = -1.0
        self.last_stop_s = -1.0
        self.paused_s = 0.0
        self.preemptions = 0
        self.oom_events = 0
        self.oom_alone = 0
        """How many times it ran out of memory with no other job beside it."""
        self.apart: set[str] = set()
        """Jobs that have to end before it waits in the queue again."""
        self.started_seq = 0
        self.tokens_done: float | None = None
        """Non-pad tokens trained on, where the backend counts them.

        None: the backend knows the expected number only.
        """
        self.run = None
        self.seen: JobView | None = None
        """Its view while it waits, once something has asked for it (`view`)."""

    @property
    def view(self) -> JobView:
        """The waiting job as policies see it.

        It is made when it is first asked for, because a queue of thousands is read from its head.
        """
        seen = self.seen
        if seen is None:
            seen = self.seen = view_of(self)
        return seen

    def cost_on(self, type_index: int) -> JobCost:
        """Return the job's cost on a device type that it fits."""
        cost = self.costs[type_index]
        assert cost is not None, f"{self.job_id} never fits device type {type_index}"
        return cost


def view_of(job: Job) -> JobView:
    """Return a job as policies see it, with the figures that it has now.

    A running job must be in sync.
    """
    spec = job.spec
    cost = job.costs[0] or next(cost for cost in job.costs if cost is not None)
    per_step = cost.solo_step_s * cost.accumulation
    left = job.predicted_steps - job.done_steps
    figures = (
        spec.job_id,
        spec.submit_s,
        cost.base.key,
        spec.priority,
        spec.batch_size,
        cost.rows,
        cost.own_bytes,
        cost.state_bytes,
        job.declared_steps,
        job.need_bytes,
        job.predicted_steps * per_step,
        left * per_step if left > 0 else 0.0,
        job.attained_s,
        job.enqueued_s,
        spec.num_gpus,
        spec.user,
        spec.group,
        spec.deadline_s,
        job.preemptions,
        spec.method,
        cost.real_tokens,
    )
    # JobView(...) is a Python call around this, which takes 0.3 us of 1.1
    return tuple.__new__(JobView, figures)
