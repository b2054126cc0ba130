"""This module checks a set of jobs before the weights of their base model are loaded.

The base model's outline, the tokenizer, the rows and the memory are looked at in this order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loramux_policies.loop.intake import Intake
from loramux_profiles.cost import CostModel, DoesNotFit
from loramux_profiles.devices import DeviceProfile
from loramux_profiles.work import JobCost
from loramux_runtime.data import FileReport, TokenisedRows
from loramux_runtime.fused.base_model import BaseModel
from loramux_runtime.jobs.job_data import total_steps
from loramux_runtime.jobs.jobs_file import JobsFile
from loramux_runtime.jobs.preparation import Preparation, PreparedJob
from loramux_runtime.train.settings import Facts, data_facts
from loramux_traces.job import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Holds jobs that can be trained as far as can be told without the weights."""

    prepared: Sequence[PreparedJob]
    """The jobs that have not ended."""
    rendered_at: datetime
    """The time that chat templates were told."""
    never: dict[str, str]
    """Jobs that do not fit the device at any micro-batch size: why, by job."""
    costs: dict[str, JobCost]
    needs: dict[str, int]
    """Bytes that each job needs at most, alone on the device with its base; by job."""
    capacity_bytes: int
    together: int
    """How many of the jobs that fit, the first by submission, fit the device at one time."""
    together_bytes: int

    @property
    def data_facts(self) -> dict[str, Facts]:
        """Digests of the jobs' rows and what they were made from, by job."""
        return data_facts(self.prepared)


def check_jobs(
    file: JobsFile,
    base: BaseModel,
    profile: DeviceProfile,
    *,
    recompute: bool = False,
    max_resident: float = float("inf"),
    ended: Collection[str] = (),
    rendered_at: datetime | None = None,
) -> Checked:
    """Read the rows of every job that has not ended, and see which jobs fit the device.

    Raises InvalidInputError for a tokenizer, and UsageError that names every bad job.
    """
    rendered_at = rendered_at or datetime.now(UTC)
    jobs = [job for job in file.jobs if job.id not in ended]
    preparation = Preparation(base, file.base.path, recompute=recompute)
    prepared = preparation.prepare_all(jobs, file.folder, rendered_at=rendered_at, source=file.source)
    cost = CostModel(profile)
    never: dict[str, str] = {}

    def unschedulable(index: int, spec: JobSpec, reason: str) -> None:
        never[spec.job_id] = reason

    intake = Intake([cost], [1], oracle=False, unschedulable=unschedulable)
    specs = sorted((job.spec for job in prepared), key=lambda spec: (spec.submit_s, spec.job_id))
    costs: dict[str, JobCost] = {}
    needs: dict[str, int] = {}
    for index, spec in enumerate(specs):
        job = intake.job(index, spec)
        if job is not None:
            costs[spec.job_id], needs[spec.job_id] = job.cost_on(0), int(job.need_bytes)
        elif isinstance(misfit := cost.micro_batch(spec), DoesNotFit):
            needs[spec.job_id] = int(misfit.need_bytes)
    together = _together(cost, list(costs.values()), max_resident)
    return Checked(
        prepared=prepared,
        rendered_at=rendered_at,
        never=never,
        costs=costs,
        needs=needs,
        capacity_bytes=int(cost.capacity_bytes),
        together=together,
        together_bytes=int(cost.upper_bytes(list(costs.values())[:together])) if together else 0,
    )


def _together(cost: CostModel, costs: Sequence[JobCost], max_resident: float) -> int:
    """Return the largest number of jobs, from the first on, that fit at one time."""
    low, high = min(1, len(costs)), int(min(len(costs), max_resident))
    while low < high:
        middle = (low + high + 1) // 2
        if cost.upper_bytes(costs[:middle]) <= cost.capacity_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def summary(checked: Checked) -> list[dict[str, Any]]:
    """Return the figures of each job that `loramux train --dry-run` shows."""
    rows = []
    for job in checked.prepared:
        config, data = job.config, job.data
        steps = total_steps(config, len(data.train))
        real = isinstance(data.train, TokenisedRows)
        mean = data.train.n_tokens / len(data.train) if isinstance(data.train, TokenisedRows) else job.spec.seq_len
        report = data.report
        cost = checked.costs.get(config.id)
        rows.append(
            {
                "job_id": config.id,
                "method": config.method,
                "rows": len(data.train),
                "held_out": 0 if data.eval is None else len(data.eval),
                "steps": steps,
                "tokens": round(steps * config.batch_size * (mean or 0)),
                "longest": int(data.train.lengths.max()) if isinstance(data.train, TokenisedRows) else None,
                "cut": report.cut if isinstance(report, FileReport) else 0,
                "left_out": report.skipped if isinstance(report, FileReport) else 0,
                "micro_batch": None if cost is None else cost.rows,
                "need_bytes": checked.needs.get(config.id),
                "fits": config.id not in checked.never,
                "columns_not_used": [name for name, _ in report.unused] if isinstance(report, FileReport) else [],
                "notes": [*job.warnings, *job.notes],
                "origin": "of its file" if real else "made up",
            }
        )
    return rows
