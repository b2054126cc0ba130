"""What `loramux status` shows: figures of running jobs, and why the others wait. Once a second, not once a step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from loramux_policies.loop.explain import in_queue, why
from loramux_policies.loop.live_view import LiveView

if TYPE_CHECKING:
    from loramux_runtime.live.service import LiveService

TOTALS: Final = ("steps", "tokens", "computed_tokens", "decisions")
RATE_S: Final = 10.0
"""Span that the tokens per second are of."""
EXPLAINED: Final = 100
"""Jobs at the head of the queue that are told why they wait; those behind are told their place."""


class Progress:
    """Brings the book up to date between commits."""

    def __init__(self, service: LiveService) -> None:
        self._service = service
        self._tokens: dict[str, tuple[float, int]] = {}
        """(time, tokens) of each resident at the last look."""
        self._peaks: dict[str, float] = {}
        """Of the device, while the job was on it."""
        self._bounds: dict[str, float] = {}
        """What was predicted at most, likewise."""
        self._before = {name: service.store.fact(f"all_{name}", 0) for name in TOTALS}
        """Totals of the processes before this one."""
        self._rate: tuple[float, float] | None = None
        """(time, tokens) a while ago."""
        self._tokens_per_s = 0.0

    def note(self, now_s: float) -> None:
        """Figures of every job in memory."""
        self.note_memory()
        service = self._service
        executor, book = service.executor, service.book
        for job_id, job in service.loop.cluster.running.items():
            if job.run is None:  # its state could not be brought, and the process ends of that
                continue
            training = job.run.training
            executor.sync(job)
            values = book.figures(job)
            since_s, before = self._tokens.get(job_id, (now_s, training.tokens))
            if now_s - since_s >= 1.0:
                values["tokens_per_s"] = (training.tokens - before) / (now_s - since_s)
            if job_id not in self._tokens or now_s - since_s >= 1.0:
                self._tokens[job_id] = (now_s, training.tokens)
            values |= {
                "step": training.step,
                "tokens": training.tokens,
                "expected_finish_s": executor.finish_s(job),
                "why": "",
            }
            values["predicted_bytes"] = self._bounds[job_id]
            if job_id in self._peaks:
                values["peak_bytes"] = self._peaks[job_id]
            book.set(job_id, **values)
        for gone in self._tokens.keys() - service.loop.cluster.running.keys():
            del self._tokens[gone]
            book.set(gone, tokens_per_s=None)
        if service.loop.cluster.n_waiting:
            self._explain(now_s)

    def _explain(self, now_s: float) -> None:
        service = self._service
        view = LiveView(service.loop.cluster, now_s, ([], [], [], []))
        try:
            plan = view.plan()
            for job in service.loop.cluster.apart:
                ids = ", ".join(sorted(job.apart)[:5])
                service.book.set(job.job_id, why=f"ran out of memory beside others: runs when {ids} have ended")
            for place, job in enumerate(list(service.loop.cluster.queue)):
                if place < EXPLAINED:
                    text = why(view, plan, job.job_id, place)
                else:
                    text = in_queue(place)
                service.book.set(job.job_id, why=text.removeprefix("waits: "))
        finally:
            view.close()

    def note_memory(self) -> None:
        """A device's peak since the last look, and its bound, are those of everybody who was there."""
        service = self._service
        for device in service.executor.devices:
            device_id = device.fused.device_id
            bound, peak = service.loop.cluster.fleet[device_id].used, service.executor.peak_bytes(device_id)
            for job_id in device.fused.runs:
                self._bounds[job_id] = max(bound, self._bounds.get(job_id, 0.0))
                if peak is not None:
                    self._peaks[job_id] = max(peak, self._peaks.get(job_id, 0.0))

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        for figures in (self._tokens, self._peaks, self._bounds):
            figures.pop(job_id, None)

    def sample(self) -> None:
        """Memory and residents from now on, for the timeline: measured where it can be, else what is expected."""
        service = self._service
        for ledger in service.loop.cluster.fleet:
            measured = service.executor.peak_bytes(ledger.device_id)
            held = (ledger.expected if measured is None else measured) if ledger.jobs else 0.0
            service.book.sample(ledger.device_id, held, len(ledger.jobs), service.n_waiting)

    def facts(self) -> dict[str, Any]:
        """The scheduler's own figures."""
        service = self._service
        loop, meters = service.loop, service.executor.meters
        ledgers = list(loop.cluster.fleet)
        now_s, tokens = service.executor.now_s, sum(meters.real_tokens)
        since_s, before = self._rate or (now_s, tokens)
        self._rate = since_s, before
        if now_s - since_s >= (RATE_S if self._tokens_per_s else 1.0):
            self._tokens_per_s = (tokens - before) / (now_s - since_s)
            self._rate = (now_s, tokens)
        busy_s = sum(meters.busy_until(ledger.device_id, now_s, len(ledger.jobs)) for ledger in ledgers)
        step_s = service.executor.step_s
        peaks = [service.executor.peak_bytes(ledger.device_id) for ledger in ledgers]
        totals = {
            "steps": sum(meters.steps),
            "tokens": tokens,
            "computed_tokens": sum(meters.computed_tokens),
            "decisions": loop.decisions,
        }
        return {
            "pid": os.getpid(),
            "policy": service.loop.policy.name,
            "base_model": service.base.name,
            "device": service.engine.device,
            "devices": len(ledgers),
            "capacity_bytes": int(service.capacity_bytes),
            "memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
            "memory_predicted_bytes": max(ledger.used if ledger.jobs else 0.0 for ledger in ledgers),
            "waiting": service.n_waiting,
            "resident": sum(len(ledger.jobs) for ledger in ledgers),
            "steps": int(self._before["steps"] + totals["steps"]),
            "tokens": int(self._before["tokens"] + totals["tokens"]),
            "tokens_per_s": self._tokens_per_s,
            "overhead_share": (busy_s - step_s) / step_s if step_s > 0.0 else None,
            "draining": service.draining,
            "policy_errors": service.policy_errors,
            "worker_deaths": service.worker_deaths,
            **{f"all_{name}": self._before[name] + totals[name] for name in TOTALS},
        }
