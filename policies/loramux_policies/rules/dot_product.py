"""This module packs jobs by the dot product of need and room.

Source: Tetris (Grandl et al., SIGCOMM 2014, section 3.2).
"""

from __future__ import annotations

from itertools import islice

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.views import ClusterView, JobView, Plan


@register("dot-product")
class DotProduct(Policy):
    """Start the pair of job and device with the largest dot product of need and room.

    Need and room are in memory and compute. A job's compute need is its tokens per micro-batch, as
    a share of the tokens that saturate a device; a device's room is what its residents leave. Jobs
    that need much go where there is much, and memory-heavy jobs go beside compute-heavy ones.
    `window`: waiting jobs looked at, by arrival. `devices`: candidate devices per job.
    `saturation_tokens`: tokens in a fused step from which a device gains nothing by more (an
    H100-class card is launch-bound below about 1k tokens a step).
    """

    def __init__(self, window: int = 16, devices: int = 8, saturation_tokens: float = 8192.0) -> None:
        if window < 1 or devices < 1 or not saturation_tokens > 0.0:
            raise ValueError(f"parameters must be positive: {window}, {devices}, {saturation_tokens}")
        self.window = window
        self.devices = devices
        self.saturation_tokens = saturation_tokens

    def place(self, view: ClusterView) -> Plan:
        """Start the best pair again and again until no job of the window fits."""
        plan = view.plan()
        waiting = iter(view.waiting(view.n_waiting))
        window = list(islice(waiting, self.window))
        tokens: dict[int, float] = {}
        while window:
            best: tuple[float, int, int] | None = None
            for position, job in enumerate(window):
                for device in islice(plan.candidates(job.job_id, "worst-fit"), self.devices):
                    if device not in tokens:
                        tokens[device] = sum(resident.tokens_per_step for resident in view.residents(device))
                    score = (self._score(view, plan, job, device, tokens[device]), -position, -device)
                    if best is None or score > best:
                        best = score
            if best is None:
                return plan
            job = window.pop(-best[1])
            plan.start(job.job_id, -best[2])
            tokens[-best[2]] += job.tokens_per_step
            window.extend(islice(waiting, 1))
        return plan

    def _score(self, view: ClusterView, plan: Plan, job: JobView, device: int, tokens: float) -> float:
        capacity = view.capacity_bytes(device)
        memory = plan.free_bytes(device) / capacity * job.need_bytes / capacity if capacity < float("inf") else 0.0
        wanted = min(1.0, job.tokens_per_step / self.saturation_tokens)
        return memory + wanted * max(0.0, 1.0 - tokens / self.saturation_tokens)
