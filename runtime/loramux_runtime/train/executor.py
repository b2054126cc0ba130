"""One real device under the decide-apply loop: the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loramux_policies.loop.job import Job
from loramux_policies.loop.meters import Meters
from loramux_policies.policy import Policy
from loramux_policies.stepping.driver import Note, StepDevice, StepTimes
from loramux_policies.stepping.live_run import LiveRun
from loramux_policies.views import FusedStep
from loramux_runtime.fused.memory import MemoryMeter, is_out_of_memory
from loramux_runtime.fused.model import FusedModel, JobOutcome
from loramux_runtime.fused.packing import Part
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.backend import TrainingBackend
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.times import RealTimes, Times

OnStep = Callable[[FusedStep, float, float], None]
"""Called after a fused step with it, its measured and its predicted seconds."""


def try_step(model: FusedModel, parts: Sequence[Part], faults: FaultPlan) -> list[JobOutcome] | None:
    """Forward and backward; None where memory ran out. The error is gone with its traceback, which would pin the step's
    tensors, when this has returned.
    """
    try:
        jobs = [(part.adapter.job_id, len(part.batch.tokens)) for part in parts]
        faults.reach("step", job_ids=tuple(name for name, _ in jobs), rows=tuple(rows for _, rows in jobs))
        return model.step(parts)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


class Executor(TrainingBackend):
    """The backend that trains. `note` records the run, so that its decisions can be replayed."""

    def __init__(
        self,
        model: FusedModel,
        policy: Policy,
        meters: Meters,
        training: dict[str, TrainingJob],
        *,
        times: Times | None = None,
        faults: FaultPlan = NONE,
        on_step: OnStep | None = None,
        on_end: Callable[[Job, TrainingJob], None] | None = None,
        note: Note | None = None,
        observer: Observer | None = None,
        rss_before: int | None = None,
    ) -> None:
        super().__init__(policy, note=note)
        self.fused = self.devices[0].fused
        self.model = model
        self._training = training
        """By job id; a job's entry is dropped when it has ended."""
        self.meters = meters
        self._times = times or RealTimes()
        self._faults = faults
        self._on_step, self._on_end = on_step, on_end
        self.memory = MemoryMeter(model.base.device, rss_before)
        self._observer = observer
        self._predicted_s = 0.0
        """Of the step under way."""

    @property
    def clock_s(self) -> float:
        """The time right now; `now_s` is that of the step boundary before it."""
        return self._times.now_s()

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Most bytes that the device has held; None where it is not known."""
        return self.memory.peak_bytes()

    def _begin(self) -> float:
        return self._times.now_s()

    def _wait(self, until_s: float) -> float:
        self._times.wait_until(until_s)
        return self._times.now_s()

    def _training_of(self, job: Job, device: StepDevice[TrainingJob]) -> TrainingJob:
        training = self._training[job.job_id]
        training.optimizer.to(self.model.base.device)
        training.begin(self.model)
        return training

    def stop(self, job: Job) -> None:
        """Copy the job's state to the host; partial gradients, moments and the data cursor are kept."""
        super().stop(job)
        self._training[job.job_id].optimizer.to("cpu")
        self._note_memory(0)

    def _launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        self._predicted_s = predicted_s

    def _land(self) -> tuple[StepDevice[TrainingJob], StepTimes]:
        device = self.devices[0]
        assert device.step is not None
        return device, self._train(device.step, device.runs, self._predicted_s)

    def _train(self, step: FusedStep, runs: list[LiveRun[TrainingJob]], predicted_s: float) -> StepTimes:
        parts = [
            Part(adapter=run.training.adapter, batch=run.training.peek(entry.rows))
            for run, entry in zip(runs, step.entries, strict=True)
        ]
        self._times.step_begins()
        self.memory.step_begins()
        began_s = self._times.now_s()
        outcomes = try_step(self.model, parts, self._faults)
        if outcomes is None:
            self.memory.release()
            self._times.step_ends(0.0)
            return StepTimes(began_s, self._times.now_s(), True)
        for part, outcome in zip(parts, outcomes, strict=True):
            self.fused.runs[outcome.job_id].training.commit(part.batch, outcome, self.model)
        dynamic_bytes = self.memory.step_bytes()
        self._times.step_ends(predicted_s)
        ended_s = self._times.now_s()
        tokens = sum(part.batch.n_tokens for part in parts)
        self._stepped(0, tokens)
        if self._on_step is not None:
            self._on_step(step, ended_s - began_s, predicted_s)
        return StepTimes(began_s, ended_s, False, self._observe(runs, parts, ended_s - began_s, dynamic_bytes))

    def _observe(
        self, runs: list[LiveRun[TrainingJob]], parts: list[Part], seconds: float, dynamic_bytes: float | None
    ) -> float | None:
        """Hold the step against the fitted profile; the bound's new scale where it has moved."""
        if self._observer is None:
            return None
        jobs = [(run.cost.adapter, part.batch) for run, part in zip(runs, parts, strict=True)]
        recompute = self.model.recompute
        return self._observer.see(jobs, recompute=recompute, seconds=seconds, dynamic_bytes=dynamic_bytes)

    def _ended(self, run: LiveRun[TrainingJob]) -> None:
        self._note_memory(0)
        if self._on_end is not None:
            self._on_end(run.job, run.training)
        del self._training[run.job_id]
