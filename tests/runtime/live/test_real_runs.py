"""A replay on the real runtime, on a clock that goes by predictions, against its simulation.

What is left is not noise.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loramux_analysis.real import turnarounds
from loramux_policies import create
from loramux_profiles.checked import read_checked
from loramux_profiles.datafiles import data_dir
from loramux_profiles.devices import load_device
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import JobsFile
from loramux_runtime.live.trace_jobs import train_job
from loramux_runtime.train.run import TrainRun
from loramux_runtime.train.times import PredictedTimes
from loramux_simulator.real_runs import setting_of, simulate_setting, step_times
from loramux_traces.runfolder import Run, read_run, write_run

RECORD = data_dir() / "cpu" / "llama-tiny.json"
SEED = 3


def replayed(folder: Path, policy: str) -> Run:
    """Eight jobs of a trace, really trained."""
    folder.mkdir()
    head = "job_id,submit_s,base_model,method,batch_size,micro_batch_size,seq_len,length_dist,total_steps,priority,dtype,rank"
    rows = [
        f"j{i},{0.05 * i:.2f},llama-tiny,{method},4,{2 if i % 2 else ''},{12 + 5 * i},{('sql', 'lognormal')[i % 2]},"
        f"{2 + i % 3},{i % 3},fp32,4"
        for i, method in enumerate(("lora", "mixlora", "mola", "dynmole") * 2)
    ]
    (folder / "trace.csv").write_text("\n".join([head, *rows]) + "\n")
    shutil.copy(RECORD, folder / "profile.json")
    trace = read_checked(folder / "trace.csv")
    jobs = [train_job(spec, seed=SEED) for spec in trace.jobs]
    file = JobsFile.model_validate(
        {"base": {"shape": "llama-tiny"}, "jobs": [job.model_dump(mode="json") for job in jobs]}
    )
    run = TrainRun(
        file,
        create(policy),
        load_device(str(RECORD)),
        base=open_base(file.base),
        times=PredictedTimes(),
        max_resident=3,
        record=True,
    )
    result = run.play()
    write_run(
        folder,
        manifest={"kind": "real", "policy": policy, "policy_params": policy, "seed": SEED, "max_resident": 3},
        jobs=result.jobs,
        events=result.events,
        summary=result.summary,
        timeline=result.timeline,
    )
    return read_run(folder)


@pytest.mark.parametrize(
    "policy",
    ["priority", "aspen", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fifo", "sjf", "aspen-minpad"))],
)
def test_the_simulation_of_a_noiseless_replay_is_exact(policy: str, tmp_path: Path) -> None:
    """Apart from loads and pauses, for which the clock of these real runs stands still."""
    real = replayed(tmp_path / "real", policy)
    setting = setting_of(real)
    assert setting.device.fitted is not None
    free = replace(setting.device.fitted, join_s=0.0, join_byte_s=0.0, pause_s=0.0, pause_byte_s=0.0)
    device = setting.device.model_copy(update={"fitted": free})
    result = simulate_setting(replace(setting, device=device), seed=SEED)
    assert result.jobs["tokens_done"].tolist() == [_tokens(real, job) for job in result.jobs["job_id"]]
    both = turnarounds(Run(tmp_path, {}, result.summary, result.jobs), real)
    assert len(both) == 8 and real.summary["steps"] == result.summary["steps"]
    assert both["simulated_s"].to_numpy() == pytest.approx(both["real_s"].to_numpy(), rel=1e-9)
    # a step is predicted by the loop from the same rows as here
    assert step_times(real, setting).factor == pytest.approx(1.0, rel=1e-9)


def _tokens(run: Run, job_id: str) -> int:
    """Tokens that a job was trained on, off the recorded steps."""
    steps = [entry for event in run.events() for entry in event.get("entries", ())]
    return sum(sum(lengths) for name, lengths in steps if name == job_id)
