"""This module notes what `loramux status` shows, once a second and not once a step.

It shows the figures of running jobs, and why the others wait.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from loramux_policies.loop.explain import in_queue, why
from loramux_policies.loop.live_view import LiveView
from loramux_policies.loop.scheduler import Scheduler
from loramux_policies.stepping.driver import StepDriver
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.drive.engine import Drive
from loramux_runtime.live.state.book import Book
from loramux_runtime.live.state.store import Store

TOTALS: Final = ("steps", "tokens", "computed_tokens", "decisions")
RATE_S: Final = 10.0
"""Span in seconds over which the tokens per second are counted."""
EXPLAINED: Final = 100
"""Jobs at the head of the queue that are told why they wait.

Those behind are told their place.
"""

ON_ITS_WAY: Final = "its state is being made, read from its checkpoint, or brought here"
"""What a job on a device waits for that is in no step yet."""


class StatusNotes:
    """Brings the book up to date between commits."""

    def __init__(
        self,
        store: Store,
        book: Book,
        loop: Scheduler,
        drive: Drive,
        driver: StepDriver[TrainingJob],
        n_waiting: Callable[[], int],
    ) -> None:
        self._book, self._loop, self._drive, self._driver = book, loop, drive, driver
        self._n_waiting = n_waiting
        """Returns the number of jobs that have come and are on no device."""
        self.stale = False
        """Whether memory or residents have changed since the last sample."""
        self._tokens: dict[str, tuple[float, int]] = {}
        """(time, tokens) of each resident at the last look."""
        self._peaks: dict[str, float] = {}
        """Most bytes of the device while the job was on it, by job."""
        self._bounds: dict[str, float] = {}
        """Most bytes that were predicted for the device while the job was on it, by job."""
        self._said: dict[str, str] = {}
        """Why each job waits, as last said."""
        self._before = {name: store.fact(f"all_{name}", 0) for name in TOTALS}
        """Totals of the processes before this one."""
        self._rate: tuple[float, float] | None = None
        """(time, tokens) at the start of the span of the rate."""
        self._tokens_per_s = 0.0

    def note(self, now_s: float) -> None:
        """Note the figures of every job in memory."""
        self.note_memory()
        driver, book, cluster = self._driver, self._book, self._loop.cluster
        for job_id, job in cluster.running.items():
            if job.run is None:
                self._say(job_id, ON_ITS_WAY)
                continue
            self._said.pop(job_id, None)
            training = job.run.training
            driver.sync(job)
            values = book.figures(job)
            since_s, before = self._tokens.get(job_id, (now_s, training.tokens))
            if now_s - since_s >= 1.0:
                values["tokens_per_s"] = (training.tokens - before) / (now_s - since_s)
            if job_id not in self._tokens or now_s - since_s >= 1.0:
                self._tokens[job_id] = (now_s, training.tokens)
            values |= {
                "step": training.step,
                "tokens": training.tokens,
                "expected_finish_s": driver.finish_s(job),
                "why": "",
            }
            values["predicted_bytes"] = self._bounds[job_id]
            if job_id in self._peaks:
                values["peak_bytes"] = self._peaks[job_id]
            book.set(job_id, **values)
        for gone in self._tokens.keys() - cluster.running.keys():
            del self._tokens[gone]
            book.set(gone, tokens_per_s=None)
        if cluster.n_waiting:
            self._explain(now_s)

    def _explain(self, now_s: float) -> None:
        cluster = self._loop.cluster
        view = LiveView(cluster, now_s, ([], [], [], []))
        try:
            plan = view.plan()
            for job in cluster.apart:
                ids = ", ".join(sorted(job.apart)[:5])
                self._say(job.job_id, f"ran out of memory beside others: runs when {ids} have ended")
            for place, job in enumerate(list(cluster.queue)):
                if place < EXPLAINED:
                    text = why(view, plan, job.job_id, place)
                else:
                    text = in_queue(place)
                self._say(job.job_id, text.removeprefix("waits: "))
        finally:
            view.close()

    def _say(self, job_id: str, why: str) -> None:
        """Say why a job waits, unless that has been said: a thousand jobs are a thousand rows."""
        if self._said.get(job_id) != why:
            self._said[job_id] = why
            self._book.set(job_id, why=why)

    def changed(self, job_id: str) -> None:
        """Note that a job has changed its state."""
        self.stale = True
        self._said.pop(job_id, None)

    def note_memory(self) -> None:
        """Note the peak and the bound of each device for every job on it.

        A device's peak since the last look, and its bound, are those of everybody who was there.
        """
        for device in self._drive.residents.devices:
            device_id = device.fused.device_id
            bound = self._loop.cluster.fleet[device_id].used
            peak = self._drive.devices.peak_bytes(device_id)
            for job_id in device.fused.runs:
                self._bounds[job_id] = max(bound, self._bounds.get(job_id, 0.0))
                if peak is not None:
                    self._peaks[job_id] = max(peak, self._peaks.get(job_id, 0.0))

    def forget(self, job_id: str) -> None:
        """Forget the figures of a job that has ended."""
        for figures in (self._tokens, self._peaks, self._bounds, self._said):
            figures.pop(job_id, None)

    def sample_if_stale(self) -> None:
        """Note memory and residents for the timeline where they have changed."""
        if not self.stale:
            return
        self.stale = False
        waiting = self._n_waiting()
        for ledger in self._loop.cluster.fleet:
            measured = self._drive.devices.peak_bytes(ledger.device_id)
            held = (ledger.expected if measured is None else measured) if ledger.jobs else 0.0
            self._book.sample(ledger.device_id, held, len(ledger.jobs), waiting)

    def facts(self) -> dict[str, Any]:
        """Return the scheduler's own figures."""
        loop, meters, devices = self._loop, self._drive.meters, self._drive.devices
        ledgers = list(loop.cluster.fleet)
        now_s, tokens = self._driver.now_s, sum(meters.real_tokens)
        since_s, before = self._rate or (now_s, tokens)
        self._rate = since_s, before
        if now_s - since_s >= (RATE_S if self._tokens_per_s else 1.0):
            self._tokens_per_s = (tokens - before) / (now_s - since_s)
            self._rate = (now_s, tokens)
        busy_s = sum(meters.busy_until(ledger.device_id, now_s, len(ledger.jobs)) for ledger in ledgers)
        step_s = devices.step_s
        peaks = [devices.peak_bytes(ledger.device_id) for ledger in ledgers]
        totals = {
            "steps": sum(meters.steps),
            "tokens": tokens,
            "computed_tokens": sum(meters.computed_tokens),
            "decisions": loop.decisions,
        }
        used = max(ledger.used if ledger.jobs else 0.0 for ledger in ledgers)
        return {
            "pid": os.getpid(),
            "devices": len(ledgers),
            "memory_bytes": max((peak for peak in peaks if peak is not None), default=None),
            "memory_predicted_bytes": used,
            "waiting": self._n_waiting(),
            "resident": sum(len(ledger.jobs) for ledger in ledgers),
            "steps": int(self._before["steps"] + totals["steps"]),
            "tokens": int(self._before["tokens"] + totals["tokens"]),
            "tokens_per_s": self._tokens_per_s,
            "overhead_share": (busy_s - step_s) / step_s if step_s > 0.0 else None,
            **{f"all_{name}": self._before[name] + totals[name] for name in TOTALS},
        }
