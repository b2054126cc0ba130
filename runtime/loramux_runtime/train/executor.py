"""This module runs the one device of this process.

torch carries out the fused steps that the loop has decided on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loramux_policies.loop.meters import Meters
from loramux_policies.stepping.contracts import OneDevice, StepDevice, StepTimes
from loramux_policies.stepping.live_run import LiveRun
from loramux_policies.views import FusedStep
from loramux_runtime.fused.memory_meter import MemoryMeter, is_out_of_memory
from loramux_runtime.fused.model import FusedModel, JobOutcome
from loramux_runtime.fused.packing import Part
from loramux_runtime.jobs.training_job import TrainingJob
from loramux_runtime.train.accounts import count_step
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.observer import Observer
from loramux_runtime.train.times import DeviceClock, RealTimes, Times

OnStep = Callable[[FusedStep, float, float], None]
"""Called after a fused step with the step, its measured and its predicted seconds."""


def try_step(model: FusedModel, parts: Sequence[Part], faults: FaultPlan) -> list[JobOutcome] | None:
    """Run forward and backward; return None where memory ran out.

    The error is gone with its traceback when this has returned: the traceback would pin the step's
    tensors.
    """
    try:
        jobs = [(part.adapter.job_id, len(part.batch.tokens)) for part in parts]
        faults.reach("step", job_ids=tuple(name for name, _ in jobs), rows=tuple(rows for _, rows in jobs))
        return model.step(parts)
    except MemoryError:
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


class Executor(OneDevice[TrainingJob], DeviceClock):
    """Trains on the device of the base model, in the caller's thread."""

    def __init__(
        self,
        model: FusedModel,
        meters: Meters,
        *,
        times: Times | None = None,
        faults: FaultPlan = NONE,
        before_step: Callable[[Sequence[LiveRun[TrainingJob]]], None] | None = None,
        on_step: OnStep | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.model = model
        self._meters = meters
        super().__init__(times or RealTimes())
        self._faults = faults
        self._before_step, self._on_step = before_step, on_step
        self.memory = MemoryMeter(model.base.device)
        self._observer = observer
        self.step_s = 0.0
        """Seconds spent in fused steps so far.

        The rest of the time with residents is the scheduler's own.
        """
        self._ended: tuple[StepDevice[TrainingJob], StepTimes]
        """The step that has been trained, until the driver asks for it."""

    def peak_bytes(self, device_id: int = 0) -> float | None:
        """Return the most bytes that the device has held; None where that is not known."""
        return self.memory.peak_bytes()

    def launch(self, device: StepDevice[TrainingJob], predicted_s: float) -> None:
        """Train the step; it is over when this returns."""
        assert device.step is not None
        if self._before_step is not None:
            self._before_step(device.runs)
        times = self._train(device.step, device.runs, predicted_s)
        self.step_s += times.ended_s - times.began_s
        self._ended = device, times

    def land(self, idle: Callable[[], object]) -> tuple[StepDevice[TrainingJob], StepTimes]:
        """Hand over the step that has been trained."""
        return self._ended

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
        training = {run.job_id: run.training for run in runs}
        for part, outcome in zip(parts, outcomes, strict=True):
            training[outcome.job_id].commit(part.batch, outcome, self.model)
        dynamic_bytes = self.memory.step_bytes()
        self._times.step_ends(predicted_s)
        ended_s = self._times.now_s()
        tokens = sum(part.batch.n_tokens for part in parts)
        count_step(self._meters, 0, tokens)
        if self._on_step is not None:
            self._on_step(step, ended_s - began_s, predicted_s)
        return StepTimes(began_s, ended_s, False, self._observe(runs, parts, ended_s - began_s, dynamic_bytes))

    def _observe(
        self, runs: list[LiveRun[TrainingJob]], parts: list[Part], seconds: float, dynamic_bytes: float | None
    ) -> float | None:
        """Hold the step against the fitted profile; return the bound's scale if it has moved."""
        if self._observer is None:
            return None
        jobs = [(run.cost.adapter, part.batch) for run, part in zip(runs, parts, strict=True)]
        recompute = self.model.recompute
        return self._observer.see(jobs, recompute=recompute, seconds=seconds, dynamic_bytes=dynamic_bytes)
