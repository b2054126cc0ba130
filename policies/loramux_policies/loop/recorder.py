"""The recorder listens to the decide-apply loop and keeps what the results of a run need.

It fills result rows into preallocated columns, and keeps the stays on devices and the event log.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_policies.loop.events import ARRIVE, BEGINS, FINAL_STATE, FINISH, LEAVES, Event
from loramux_policies.loop.job import Job
from loramux_traces.job import JobSpec
from loramux_traces.results import JOB_COLUMNS, UNFINISHED

STATES: Final = (UNFINISHED, *FINAL_STATE.values())
_CODES: Final = {event: code for code, event in enumerate(FINAL_STATE, start=1)}
"""Event -> place in STATES: it takes a byte per job where a million of them are kept."""


class Recorder:
    """A recorder holds the results of every job of a trace, in the trace's order."""

    def __init__(
        self,
        specs: Sequence[JobSpec],
        now_s: Callable[[], float],
        type_of_device: Sequence[int],
        *,
        events: bool,
        segments: bool,
    ) -> None:
        n = len(specs)
        self._specs = specs
        self._now_s = now_s
        self._type_of_device = type_of_device
        self.events: list[dict[str, Any]] | None = [] if events else None
        self._segments = segments
        # These are arrays, not numpy's: storing one element takes 30 ns where numpy takes 100
        self._start_s = array("d", [np.nan]) * n
        self._finish_s = array("d", [np.nan]) * n
        self._paused_s = array("d", [0.0]) * n
        self._solo_s = array("d", [np.nan]) * n
        self._steps = array("d", [0.0]) * n
        self._tokens = array("d", [0.0]) * n
        self._service_s = array("d", [0.0]) * n
        self._state = array("b", [0]) * n
        self._preemptions = array("q", [0]) * n
        self._ooms = array("q", [0]) * n
        self._devices: list[str] = [""] * n
        self._reasons: dict[int, str] = {}
        self._device_names: dict[tuple[int, ...], str] = {}
        self._open: dict[int, float] = {}
        self._seg_job = array("l")
        self._seg_device = array("l")
        self._seg_start = array("d")
        self._seg_end = array("d")

    def hear(self, event: str, job: Job, devices: tuple[int, ...], detail: str) -> None:
        """Record one event of the loop (`Scheduler`'s listener)."""
        now_s = self._now_s()
        index = job.index
        if event in BEGINS:
            if self._segments:
                self._open[index] = now_s
            try:
                self._devices[index] = self._device_names[devices]
            except KeyError:
                self._devices[index] = self._device_names[devices] = "+".join(map(str, devices))
        elif event != ARRIVE:
            if index in self._open and event in LEAVES:
                start_s = self._open.pop(index)
                for device in devices:
                    self._seg_job.append(index)
                    self._seg_device.append(device)
                    self._seg_start.append(start_s)
                    self._seg_end.append(now_s)
            code = _CODES.get(event)
            if code is not None:
                self._end(job, code, now_s, devices)
                if event != FINISH:
                    self._reasons[index] = detail
        if self.events is not None:
            row: dict[str, Any] = {"t_s": now_s, "event": event, "job_id": job.job_id}
            if devices:
                row["devices"] = list(devices)
            if detail:
                row["detail"] = detail
            self.events.append(row)

    def note(self, row: dict[str, Any]) -> None:
        """Add one row that is no event of the loop to the recorded stream (`stream`)."""
        if self.events is not None:
            self.events.append(row)

    def unschedulable(self, index: int, spec: JobSpec, reason: str) -> None:
        """Record a job that never fits any device of the run."""
        self._state[index] = _CODES[Event.UNSCHEDULABLE]
        self._reasons[index] = reason
        if self.events is not None:
            self.events.append(
                {"t_s": spec.submit_s, "event": Event.UNSCHEDULABLE, "job_id": spec.job_id, "detail": reason}
            )

    def _end(self, job: Job, state: int, now_s: float, devices: tuple[int, ...]) -> None:
        index = job.index
        self._state[index] = state
        if job.first_start_s >= 0:
            self._start_s[index] = job.first_start_s
            self._finish_s[index] = now_s
            if job.paused_s:  # the column is zero already where nothing is written
                self._paused_s[index] = job.paused_s
        cost = job.cost_on(self._type_of_device[devices[0]]) if devices else next(c for c in job.costs if c is not None)
        self._solo_s[index] = job.true_steps * cost.accumulation * cost.solo_step_s
        self._steps[index] = job.done_steps
        tokens = job.tokens_done
        if tokens is None:
            # data-parallel: each device of a gang trains on rows of its own in every step
            tokens = job.done_steps * cost.accumulation * cost.real_tokens * job.spec.num_gpus
        self._tokens[index] = tokens
        self._service_s[index] = job.attained_s
        if job.preemptions:
            self._preemptions[index] = job.preemptions
        if job.oom_events:
            self._ooms[index] = job.oom_events

    def log(self) -> list[dict[str, Any]] | None:
        """Return the events in order of time.

        They need sorting, because jobs that never fit are found when the job before them arrives.
        """
        return None if self.events is None else sorted(self.events, key=lambda row: row["t_s"])

    def table(self, indices: Sequence[int] | None = None) -> pd.DataFrame:
        """Return one row per job with the columns of `JOB_COLUMNS`, sorted by job id.

        `indices`: the jobs, by their places in the trace; None: all of them.
        """
        specs = self._specs
        # The rows are in order from the start: sorting the finished frame would hold a million rows
        # three times over
        chosen = range(len(specs)) if indices is None else indices
        order = np.array(sorted(chosen, key=lambda i: specs[i].job_id), dtype=np.intp)

        def figures(column: array[Any]) -> np.ndarray[Any, Any]:
            return np.array(column)[order]

        def texts(values: Sequence[str]) -> list[str]:
            return [values[i] for i in order.tolist()]

        def of_specs(name: str) -> list[Any]:
            get = attrgetter(name)
            return [get(specs[i]) for i in order.tolist()]

        submit_s = np.array(of_specs("submit_s"))
        start_s, finish_s = figures(self._start_s), figures(self._finish_s)
        paused_s, solo_s = figures(self._paused_s), figures(self._solo_s)
        columns: dict[str, Any] = {
            "job_id": of_specs("job_id"),
            "submission_time": submit_s,
            "starting_time": start_s,
            "finish_time": finish_s,
            "waiting_time": start_s - submit_s,
            "execution_time": finish_s - start_s - paused_s,
            "paused_time": paused_s,
            "turnaround_time": finish_s - submit_s,
            "stretch": (finish_s - submit_s) / solo_s,
            "solo_time": solo_s,
            "final_state": [STATES[code] for code in figures(self._state).tolist()],
            "reason": [self._reasons.get(i, "") for i in order.tolist()],
            "allocated_resources": texts(self._devices),
            "preemptions": figures(self._preemptions),
            "oom_events": figures(self._ooms),
            "steps_done": figures(self._steps),
            "tokens_done": figures(self._tokens),
            "service_s": figures(self._service_s),
            **{name: of_specs(name) for name in ("user", "group", "base_model", "method", "priority", "num_gpus")},
        }
        return pd.DataFrame({name: columns.pop(name) for name in JOB_COLUMNS}, copy=False)

    def segments(self) -> dict[str, list[Any]]:
        """Return the `segments` of the timeline."""
        return {
            "job_id": [self._specs[i].job_id for i in self._seg_job],
            "device_id": self._seg_device.tolist(),
            "start_s": self._seg_start.tolist(),
            "end_s": self._seg_end.tolist(),
        }
