"""This module turns the rows of a trace into jobs of the decide-apply loop.

It works out costs per device type, lengths and predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from loramux_policies.loop.job import Job
from loramux_profiles.cost import CostModel, DoesNotFit, declared_micro_steps
from loramux_profiles.devices import load_device
from loramux_profiles.work import ADMISSION_QUANTILE, JobCost
from loramux_traces.job import JobSpec


class Intake:
    """An intake makes a job the moment it arrives.

    So a million of them need not exist at once.
    """

    def __init__(
        self,
        models: Sequence[CostModel],
        devices_of_type: Sequence[int],
        *,
        oracle: bool,
        unschedulable: Callable[[int, JobSpec, str], None],
        predict: Callable[[JobSpec, float], float] | None = None,
    ) -> None:
        self._models = models
        self._devices_of_type = devices_of_type
        self._oracle = oracle
        self._predict = predict
        """(job, declared steps) -> the steps that predictions use; None: the declared ones."""
        self._unschedulable = unschedulable
        self._references: dict[str, CostModel] = {model.device.name: model for model in reversed(models)}
        self._misfits: dict[JobCost, DoesNotFit | None] = {}
        self._fitting: dict[tuple[JobCost, ...], tuple[tuple[JobCost | None, ...], float, float]] = {}
        """For each class seen: its costs on the types that it fits, and its needs.

        One tuple of costs serves all jobs of the class.
        """
        self._needs: dict[tuple[JobCost | None, ...], tuple[float, float]] = {}
        self.hopeless = 0
        """The number of jobs that fit no device of the run."""

    def jobs(self, specs: Sequence[JobSpec]) -> Iterator[Job]:
        """Yield the jobs that can run, in the order of the trace; the others are reported."""
        for index, spec in enumerate(specs):
            job = self.job(index, spec)
            if job is not None:
                yield job

    def job(self, index: int, spec: JobSpec) -> Job | None:
        """Return one job, or None (and a report) where it fits no device of the run."""
        models = self._models
        priced = (models[0].job_cost(spec),) if len(models) == 1 else tuple([model.job_cost(spec) for model in models])
        fitting = self._fitting.get(priced) if spec.num_gpus == 1 else None
        if fitting is None:
            costs = tuple([self._if_fits(*pair, spec) for pair in zip(self._models, priced, strict=True)])
            if spec.num_gpus > 1:
                enough = [count >= spec.num_gpus for count in self._devices_of_type]
                costs = tuple([cost if enough[i] else None for i, cost in enumerate(costs)])
            if not any(costs):
                self.hopeless += 1
                self._unschedulable(index, spec, self._why(spec))
                return None
            fitting = (costs, *self._need(costs))
            if spec.num_gpus == 1:
                self._fitting[priced] = fitting
        costs, need_min, need_bytes = fitting
        cost, model = costs[0], models[0]
        if cost is None:
            cost, model = next((c, m) for c, m in zip(costs, models, strict=True) if c is not None)
        reference = None if spec.duration_s is None else self._reference(spec, model, priced[0])
        declared = declared_micro_steps(spec, cost, reference) / cost.accumulation
        predicted = declared
        if self._oracle and spec.stop_step is not None:
            declared = predicted = min(declared, spec.stop_step)
        elif self._predict is not None:
            predicted = self._predict(spec, declared)
        return Job(index, spec, costs, declared, predicted, need_min, need_bytes)

    def _if_fits(self, model: CostModel, cost: JobCost, spec: JobSpec) -> JobCost | None:
        if cost in self._misfits:
            misfit = self._misfits[cost]
        else:
            found = model.micro_batch(spec)
            misfit = self._misfits[cost] = found if isinstance(found, DoesNotFit) else None
        return cost if misfit is None else None

    def _reference(self, spec: JobSpec, model: CostModel, first: JobCost) -> JobCost:
        """Return the cost on the device that `duration_s` refers to.

        That is ref_gpu, or else the first device of the run.
        """
        if spec.ref_gpu is None or spec.ref_gpu == self._models[0].device.name:
            return first
        known = self._references.get(spec.ref_gpu)
        if known is None:
            known = self._references[spec.ref_gpu] = CostModel(
                load_device(spec.ref_gpu),
                fusion=model.fusion,
                copies=model.copies,
                ideal=model.ideal,
                folder=model.folder,
            )
        return known.job_cost(spec)

    def _need(self, costs: tuple[JobCost | None, ...]) -> tuple[float, float]:
        known = self._needs.get(costs)
        if known is None:
            least = float("inf")
            alone = 0.0
            for cost, model in zip(costs, self._models, strict=True):
                if cost is None:
                    continue
                need = model.upper_bytes((cost,))
                alone = alone or need
                extra = 0.0
                # Where memory is planned, others' temporaries may cover the job's own
                if not cost.overridden and cost.base.planned is None:
                    extra = min(cost.dynamic_q * (1 + model.upper_margin), float(cost.base.weights_bytes))
                least = min(least, cost.own_bytes + extra)
            known = self._needs[costs] = (least, alone)
        return known

    def _why(self, spec: JobSpec) -> str:
        for model, count in zip(self._models, self._devices_of_type, strict=True):
            found = model.micro_batch(spec)
            if isinstance(found, DoesNotFit):
                cost = model.job_cost(spec)
                have = f"{model.device.name} has {found.have_bytes}"
                if cost.overridden:
                    return f"its mem_bytes are {found.need_bytes}, {have}"
                return (
                    f"one row of {cost.length_q} tokens (the {ADMISSION_QUANTILE} quantile of its lengths) needs "
                    f"{found.need_bytes} bytes, {have} (smaller rank, shorter sequences, recompute, or a larger device)"
                )
            if count < spec.num_gpus:
                return f"needs {spec.num_gpus} devices of one type at once, the run has {count} {model.device.name}"
        raise AssertionError(f"{spec.job_id} fits")
