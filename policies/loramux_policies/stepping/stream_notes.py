"""This module notes what happens to a run of fused steps, in the rows of its recorded stream."""

from __future__ import annotations

from collections.abc import Sequence

from loramux_policies.stepping.contracts import Note, StepDevice, StepTimes
from loramux_policies.stepping.live_run import LiveRun, P
from loramux_policies.stepping.stream import loading_row, step_row, time_row
from loramux_policies.views import FusedStep


class StreamNotes:
    """Hands the rows of the stream to `note`; without one nothing is noted."""

    def __init__(self, note: Note | None) -> None:
        self._note = note

    def time(self, event: str, t_s: float) -> None:
        """Note a `begin`, `wait` or `stop` of the run."""
        if self._note is not None:
            self._note(time_row(event, t_s))

    def loading(self, event: str, t_s: float, job_id: str) -> None:
        """Note that the state of a job that started is `loading`, or is `loaded` now."""
        if self._note is not None:
            self._note(loading_row(event, t_s, job_id))

    def takes_off(self, device: StepDevice[P], step: FusedStep) -> None:
        """Keep the row lengths of a step that begins: nobody knows them when it has ended."""
        if self._note is not None:
            entries = zip(device.runs, step.entries, strict=True)
            device.lengths = [run.lengths[: entry.rows] for run, entry in entries]

    def landed(self, device: StepDevice[P], step: FusedStep, runs: Sequence[LiveRun[P]], times: StepTimes) -> None:
        """Note a step that has ended."""
        if self._note is not None:
            likely = {run.job_id: run.p_stop for run in runs}
            self._note(step_row(step, device.lengths, likely, *times))
