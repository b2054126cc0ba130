"""This module marks in the state folder who is about to be trained.

The training may be the last thing that this process does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loramux_policies.loop.job import Job
from loramux_policies.stepping.live_run import LiveRun
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.live.state.marker import Marker


class StepMarks:
    """Writes the marks of steps and of jobs that join.

    By them the next process knows whom to suspect.
    """

    def __init__(self, marker: Marker) -> None:
        self._marker = marker

    def step_follows(self, runs: Sequence[LiveRun[TrainingJob]]) -> None:
        """Mark the jobs of the step that follows, with the optimizer steps that they have done."""
        self._marker.set("step", {run.job_id: run.training.progress_steps for run in runs})

    @contextmanager
    def joining(self, job: Job) -> Iterator[None]:
        """Mark a job while its state is brought onto the device.

        After that the mark says that the policy may be asked again.
        """
        # its state is made or read, its rows are opened: what happens here is this job's doing
        self._marker.set("admit", {job.job_id: job.done_steps})
        yield
        self._marker.set("decide")
