"""A tiny base, data and jobs files for the tests of jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loramux_policies import create
from loramux_policies.policy import Policy
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import JobsFile, TrainJob
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_runtime.train.run import TrainResult, TrainRun
from loramux_runtime.train.times import PredictedTimes, Times

from ...tiny_model import CONFIG


def write_rows(folder: Path, name: str = "rows.jsonl", n: int = 24, length: int | None = None) -> Path:
    """`n` text rows; of one length where it is given."""
    path = folder / name
    texts = [f"{i % 10}{i % 7} is {'abc' * (i % 5)}{i}" for i in range(n)]
    if length is not None:
        texts = [(text * length)[:length] for text in texts]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def job(job_id: str, data: Path, **fields: Any) -> dict[str, Any]:
    """A job of a jobs file: 4 steps of 4 rows."""
    options = fields.pop("data_options", {})
    return {
        "id": job_id,
        "data": {"path": str(data), **options},
        "batch_size": 4,
        "steps": 4,
        "optimizer": {"lr": 0.01},
        **fields,
    }


MIXED: tuple[dict[str, Any], ...] = (
    {"method": "lora", "adapter": {"rank": 4, "dropout": 0.1}},
    {"method": "mixlora", "adapter": {"rank": 4, "num_experts": 4, "dropout": 0.1}},
    {"method": "mola", "adapter": {"rank": 4, "num_experts": [2, 4]}},
    {"method": "dynmole", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "lora", "adapter": {"rank": 16, "use_dora": True}},
)


def jobs_file(jobs: list[dict[str, Any]], dtype: str = "fp32") -> JobsFile:
    """A checked jobs file."""
    return JobsFile.model_validate({"base": {"config": CONFIG, "dtype": dtype}, "jobs": jobs})


def profile(**values: float) -> DeviceProfile:
    """The CPU's profile with other constants."""
    known = load_device("cpu")
    parameters = {
        name: parameter.model_copy(update={"value": values.get(name, parameter.value)})
        for name, parameter in known.parameters.items()
    }
    return known.model_copy(update={"parameters": parameters})


def make_run(
    jobs: list[dict[str, Any]],
    policy: Policy | str = "aspen",
    *,
    times: Times | None = None,
    faults: FaultPlan = NONE,
    device: DeviceProfile | None = None,
    **options: Any,
) -> TrainRun:
    """A run that is ready to play; time goes by predictions unless `times` says otherwise."""
    file = jobs_file(jobs)
    chosen = create(policy) if isinstance(policy, str) else policy
    return TrainRun(
        file,
        chosen,
        device or profile(),
        base=open_base(file.base),
        times=times or PredictedTimes(),
        faults=faults,
        **options,
    )


def play(jobs: list[dict[str, Any]], policy: Policy | str = "aspen", **options: Any) -> tuple[TrainRun, TrainResult]:
    """Run to the end."""
    run = make_run(jobs, policy, **options)
    return run, run.play()


def losses(result: TrainResult) -> dict[str, list[float | None]]:
    """Loss curve by job."""
    found: dict[str, list[float | None]] = {}
    for row in result.training:
        found.setdefault(row["job_id"], []).append(row["loss"])
    return found


def train_job(data: Path, **fields: Any) -> TrainJob:
    """One checked job."""
    return TrainJob.model_validate(job("a", data, **fields))
