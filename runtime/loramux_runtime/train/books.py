"""This module keeps the books of a training run, what earlier processes did of it included.

The results are made of them, and the journal gets what is new in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from loramux_policies.loop.events import ARRIVE, FINAL_STATE, Event
from loramux_policies.loop.job import RUNNING, Job
from loramux_policies.loop.meters import Meters
from loramux_policies.loop.recorder import Recorder
from loramux_policies.loop.scheduler import Scheduler
from loramux_runtime.train.journal import Row
from loramux_runtime.train.progress import EVENTS, QUEUE, SAMPLES, Earlier
from loramux_runtime.train.stays import stays
from loramux_traces.job import JobSpec
from loramux_traces.results import COUNT_COLUMNS, JOB_COLUMNS, TEXT_COLUMNS, UNFINISHED, RunStats, empty_timeline

INTERRUPTED = "the run was interrupted"


class Books:
    """Holds the events, records, samples and result rows of one run on one device.

    `specs`: the jobs of this process; those that ended before it are in `earlier`.
    """

    def __init__(
        self, specs: Sequence[JobSpec], meters: Meters, now_s: Callable[[], float], earlier: Earlier | None = None
    ) -> None:
        self.earlier = earlier or Earlier()
        self.meters = meters
        self.recorder = Recorder(specs, now_s, [0], events=True, segments=False)
        self.records: list[Row] = []
        """Records of the optimizer steps that this process has trained."""
        self.loop: Scheduler
        """The loop that the books are of; set when it is made."""
        self.scores: dict[str, Row] = {}
        """First and last evaluation of the jobs that have ended in this process."""
        self._now_s = now_s
        self._specs = specs
        self._ended: dict[str, int] = {}
        self._changed: set[str] = set()
        self._unfinished: dict[str, tuple[str, Job | None]] = {}
        """Jobs that are left for another process: why, and as the loop had it if it did."""
        self._positions: dict[str, int] = {}
        """Steps that a restored job has behind it; what was recorded beyond is trained again."""
        self._kept = {EVENTS: 0, SAMPLES: 0, QUEUE: 0, "records": 0}
        """How much of each log is in the journal."""
        if earlier is not None:
            self._go_on(earlier)

    def _go_on(self, earlier: Earlier) -> None:
        """Note that the residents of the process before lost their device when it ended."""
        earlier.interruptions += 1
        for job_id, row in earlier.jobs.items():
            if row.get("devices"):
                lost = {"event": Event.LOST, "job_id": job_id, "devices": row["devices"], "detail": INTERRUPTED}
                self.recorder.note({"t_s": earlier.now_s, **lost})
        self.recorder.note({"t_s": earlier.now_s, "event": "scheduler", "last_s": earlier.now_s, "detail": "resumed"})
        self.meters.memory(0, earlier.now_s, 0.0, 0)

    # -- what happens

    def hear(self, event: Event, job: Job, devices: tuple[int, ...], detail: str) -> None:
        """Note one event of the loop (`scheduler.Listener`)."""
        self._changed.add(job.job_id)
        if event == ARRIVE and job.job_id in self.earlier.jobs:
            return
        self.recorder.hear(event, job, devices, detail)
        if event in FINAL_STATE:
            self._ended[job.job_id] = job.index

    def unschedulable(self, index: int, spec: JobSpec, reason: str) -> None:
        """Note a job that never fits the device."""
        self.recorder.unschedulable(index, spec, reason)
        self._ended[spec.job_id] = index
        self._changed.add(spec.job_id)

    def unfinish(self, job_id: str, reason: str, job: Job | None = None) -> None:
        """Leave a job to another process, although the loop is done with it or never had it."""
        self._ended.pop(job_id, None)
        self._unfinished[job_id] = reason, job

    def has_begun(self, job_id: str) -> bool:
        """Return whether the job has been on a device in an earlier process."""
        return float(self.earlier.jobs.get(job_id, {}).get("first_start_s", -1.0)) >= 0.0

    def take_up(self, job: Job) -> None:
        """Give a job that arrived in an earlier process the figures that it had there."""
        row = self.earlier.jobs[job.job_id]
        job.first_start_s, job.paused_s = row["first_start_s"], row["paused_s"]
        job.preemptions, job.oom_events = row["preemptions"], row["oom_events"]
        job.last_stop_s = self.earlier.now_s if row["devices"] else row["last_stop_s"]

    def restored(self, job_id: str, step: int) -> None:
        """Note the step at which a job goes on."""
        self._positions[job_id] = step

    # -- what is known

    @property
    def dirty(self) -> bool:
        """Whether a job has ended that the journal does not know to have ended."""
        return not self._changed.isdisjoint(self._ended)

    def news(self) -> dict[str, Any]:
        """Return what the journal lacks, as arguments of its `commit`."""
        log, samples = self.recorder.events or [], self._columns()
        rows: dict[str, list[Any]] = {EVENTS: log, SAMPLES: samples[0], QUEUE: samples[1]}
        return {
            "facts": {
                "now_s": self._now_s(),
                "stats": asdict(self.stats(0.0)),
                "interruptions": self.earlier.interruptions,
            },
            "jobs": {job_id: row for job_id in self._changed if (row := self._row(job_id)) is not None},
            "records": self.records[self._kept["records"] :],
            "logs": {kind: found[self._kept[kind] :] for kind, found in rows.items()},
        }

    def kept(self, news: Mapping[str, Any]) -> None:
        """Note that the journal has got that."""
        for kind, rows in {**news["logs"], "records": news["records"]}.items():
            self._kept[kind] += len(rows)
        self._changed.clear()

    def _row(self, job_id: str) -> Row | None:
        index = self._ended.get(job_id)
        if index is not None:
            ended: Row = self.recorder.table([index]).to_dict("records")[0]  # type: ignore[assignment]
            return {"ended": ended, "score": self.scores.get(job_id)}
        job = self.loop.cluster.active.get(job_id) or self._unfinished.get(job_id, ("", None))[1]
        if job is None:
            return None
        return {
            "first_start_s": job.first_start_s,
            "paused_s": job.paused_s,
            "last_stop_s": job.last_stop_s,
            "preemptions": job.preemptions,
            "oom_events": job.oom_events,
            "devices": list(job.devices) if job.state == RUNNING else [],
        }

    def _columns(self) -> tuple[list[list[Any]], list[list[Any]]]:
        found = self.meters.samples()
        samples, queue = found["samples"], found["queue"]
        columns = (samples[name] for name in ("device_id", "t_s", "memory_bytes", "n_residents"))
        return [list(row) for row in zip(*columns, strict=True)], [
            list(row) for row in zip(queue["t_s"], queue["n_waiting"], strict=True)
        ]

    # -- results

    def events(self) -> list[Row]:
        """Return the events of the run in order of time."""
        return [*self.earlier.events, *(self.recorder.log() or [])]

    def all_records(self) -> list[Row]:
        """Return the records of every optimizer step of the run, each once."""
        last = self._positions
        known = [row for row in self.earlier.records if row["step"] <= last.get(row["job_id"], row["step"])]
        return known + self.records

    def stats(self, capacity: float) -> RunStats:
        """Return the totals of the run."""
        stats = self.meters.stats([capacity])
        stats.decisions = self.loop.decisions
        before = self.earlier.stats
        if before is not None:
            for name in ("busy_device_s", "real_tokens", "computed_tokens", "memory_byte_s", "steps", "decisions"):
                setattr(stats, name, getattr(stats, name) + getattr(before, name))
            stats.memory_peak_bytes = max(stats.memory_peak_bytes, before.memory_peak_bytes)
        return stats

    def table(self, tokens: Mapping[str, int]) -> pd.DataFrame:
        """Return jobs.csv; `tokens`: those that each unfinished job has been trained on."""
        own, active = self.recorder.table(), self.loop.cluster.active
        if not active and not self._unfinished and not self.earlier.ended:
            return own
        rows: dict[str, Row] = {str(row["job_id"]): row for row in own.to_dict("records")}  # type: ignore[misc]
        for job_id, row in rows.items():
            if job_id in active:
                row.update(_so_far(active[job_id], tokens.get(job_id, 0)))
            if job_id in self._unfinished:
                row.update(final_state=UNFINISHED, reason=self._unfinished[job_id][0])
        rows |= self.earlier.ended
        found = pd.DataFrame([rows[job_id] for job_id in sorted(rows)], columns=list(JOB_COLUMNS))
        # JSON has no NaN: what an ended job lacks has come back as None
        return found.astype({name: np.float64 for name in JOB_COLUMNS if name not in (*TEXT_COLUMNS, *COUNT_COLUMNS)})

    def timeline(self, capacity: float, device: str) -> dict[str, Any]:
        """Return the timeline of the run."""
        timeline = empty_timeline()
        timeline["devices"] = [{"device_id": 0, "name": device, "memory_capacity_bytes": capacity}]
        timeline["segments"] = stays(self.events(), self._now_s())
        samples, queue = self._columns()
        names = ("device_id", "t_s", "memory_bytes", "n_residents")
        timeline["samples"] = _transposed([*self.earlier.samples, *samples], names)
        timeline["queue"] = _transposed([*self.earlier.queue, *queue], ("t_s", "n_waiting"))
        return timeline


def _so_far(job: Job, tokens: int) -> Row:
    """Return the figures of a job that has not ended."""
    figures: Row = {
        "preemptions": job.preemptions,
        "oom_events": job.oom_events,
        "steps_done": job.done_steps,
        "tokens_done": float(tokens),
        "service_s": job.attained_s,
    }
    if job.first_start_s >= 0:
        figures |= {
            "starting_time": job.first_start_s,
            "waiting_time": job.first_start_s - job.spec.submit_s,
            "paused_time": job.paused_s,
        }
    return figures


def _transposed(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}
