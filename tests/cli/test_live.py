"""The live scheduler as users have it.

Commands in one shell, the scheduler in another, signals, exit codes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from loramux_runtime.live.state.store import DATABASE, Store
from loramux_runtime.live.watch.status import read_status
from loramux_traces.errors import StateError

from ..tiny_model import CONFIG
from ..waiting import finished, run_process, until
from .conftest import Cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
STARTED: list[subprocess.Popen[str]] = []
JOBS = (
    f"base: {json.dumps({'config': CONFIG})}"
    + """
defaults: {data: {path: rows.jsonl}, batch_size: 4}
jobs:
  - {id: short, steps: 5}
  - {id: long, method: mixlora, adapter: {rank: 4, num_experts: 4}, steps: 100000, priority: 2}
"""
)


def loramux(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, "-m", "loramux_cli.main", *arguments], cwd=cwd, env=ENVIRONMENT)


def start(*arguments: str, cwd: Path, said: str = "said") -> subprocess.Popen[str]:
    """A scheduler; what it says goes into a file."""
    with (cwd / said).open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loramux_cli.main", "run", "--state", "state", *arguments],
            cwd=cwd, stderr=file, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
        )  # fmt: skip
    STARTED.append(process)
    return process


def status(cwd: Path) -> dict[str, Any]:
    """What `loramux status` reads, read by this process."""
    store = Store(cwd / "state")
    try:
        return read_status(store)
    finally:
        store.close()


def wait_for(process: subprocess.Popen[str], cwd: Path, what: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The status once a scheduler runs and `what` holds of its jobs by name.

    It goes on as long as there is progress.
    """
    latest: list[dict[str, Any]] = []

    def found() -> dict[str, Any] | None:
        if not (cwd / "state" / DATABASE).exists():
            return None
        try:
            latest[:] = [status(cwd)]
        except StateError as error:
            assert "no such table" in str(error) and not latest  # it is just being made
            return None
        jobs = {job["job_id"]: job | {"step": job["step"] or 0} for job in latest[0]["jobs"]}
        return latest[0] if latest[0]["running"] and what(jobs) else None

    progress = lambda: [(one["steps"], one["restarts"], one["pid"], one["jobs"]) for one in latest]
    given: dict[str, Any] = until(found, process=process, progress=progress, poll_s=0.1)
    return given


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"text": f"row {i} {'ab' * (i % 5)}"}) + "\n" for i in range(20))
    )
    (tmp_path / "jobs.yaml").write_text(JOBS)
    yield tmp_path
    while STARTED:  # a test that has failed must not leave its scheduler behind
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            finished(process)


WAIT = ("--state", "state", "--wait", "600")


def test_a_day_in_the_life(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli("status", "--state", "state").code == 6
    first = start("--base", "jobs.yaml", "--policy", "fifo", "--checkpoint-every", "1", cwd=folder)
    wait_for(first, folder, lambda jobs: True)
    sent = loramux("submit", "jobs.yaml", "--state", "state", cwd=folder)
    assert sent.stdout == "submitted short, long\n", sent.stderr
    found = wait_for(first, folder, lambda jobs: jobs["short"]["state"] == "COMPLETED" and jobs["long"]["step"] > 20)
    assert found["running"] and found["policy"] == "fifo"
    assert (folder / "state" / "adapters" / "short" / "adapter_model.safetensors").is_file()
    told = json.loads(loramux("status", "--state", "state", "--json", cwd=folder).stdout)
    assert told["running"] and told["pid"] == found["pid"] and told["jobs"][1]["step"] >= found["jobs"][1]["step"]

    second = cli("run", "--state", "state", "--base", "jobs.yaml", "--no-supervise")
    assert second.code == 6 and f"process {found['pid']} is writing" in second.err

    shown = cli("logs", "short", "--state", "state").out.splitlines()
    assert len(shown) == 5 and "step 5/5" in shown[-1] and "loss" in shown[-1]
    out = cli("export", "short", "--out", "adapter", *WAIT)
    assert out.code == 0 and (folder / "adapter" / "adapter_config.json").is_file()
    now = cli("export", "long", "--out", "now", *WAIT)
    assert now.code == 0 and (folder / "now" / "adapter_config.json").is_file(), now.err
    assert cli("pause", "long", *WAIT).out == "long is paused\n"
    assert status(folder)["jobs"][1]["state"] == "HELD"
    assert cli("resume", "long", *WAIT).out == "long goes on\n"
    assert cli("cancel", "nobody", *WAIT).code == 2

    at = status(folder)["jobs"][1]["step"]
    first.send_signal(signal.SIGTERM)
    assert finished(first) == 143
    stopped = status(folder)
    assert not stopped["running"] and stopped["jobs"][1]["why"] == "no scheduler is running"
    assert stopped["jobs"][1]["step"] >= at
    assert json.loads((folder / "state" / "summary.json").read_text())["completed"] == 1

    third = start(cwd=folder)  # base and policy are known
    went_on = wait_for(third, folder, lambda jobs: jobs["long"]["step"] > stopped["jobs"][1]["step"])
    assert went_on["policy"] == "fifo" and went_on["restarts"] == 0
    steps = [json.loads(line)["step"] for line in cli("logs", "long", "--state", "state", "--json").out.splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert cli("cancel", "long", *WAIT).out == "long is cancelled\n"
    assert cli("drain", *WAIT).code == 0
    assert finished(third) == 0
    plot = cli("plot", "state")
    assert plot.code == 0, plot.err


def test_a_killed_process_is_started_again_and_ctrl_c_ends_it(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    process = start("--base", "jobs.yaml", "--checkpoint-every", "0.2", cwd=folder)
    wait_for(process, folder, lambda jobs: True)
    # two jobs, one name
    assert cli("submit", "jobs.yaml", "--state", "state", "--id", "only").code == 2
    assert cli("submit", "jobs.yaml", "--state", "state").code == 0
    before = wait_for(process, folder, lambda jobs: jobs and jobs["long"]["step"] > 10)
    os.kill(before["pid"], signal.SIGKILL)
    again = wait_for(process, folder, lambda jobs: status(folder)["restarts"] == 1)
    assert again["pid"] != before["pid"]
    wait_for(process, folder, lambda jobs: jobs["long"]["step"] > again["jobs"][1]["step"] + 5)
    process.send_signal(signal.SIGINT)
    assert finished(process) == 130
    assert "killed by signal 9; starting it again" in (folder / "said").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--state", "state", "--no-supervise"), "--base is needed"),
        (("run", "--state", "state", "--base", "no-such", "--no-supervise"), "no shape of that name"),
        (
            ("run", "--state", "state", "--base", "jobs.yaml", "--policy", "nix", "--no-supervise"),
            "no policy is called",
        ),
        (("run", "--state", "state", "--base", "jobs.yaml", "--on-policy-error", "weep"), "fallback or exit"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], said: str, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    ran = cli(*arguments)
    assert (ran.code, said in ran.err) == (2, True), ran.err


REPLAY = ("--base", "jobs.yaml", "--trace", "trace.csv", "--step-scale")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--base", "no-such"), "no shape of that name"), ((*REPLAY, "inf"), "the step scale must be above 0, not inf")],
)
def test_nothing_stays_of_it(arguments: tuple[str, ...], said: str, folder: Path) -> None:
    (folder / "trace.csv").write_text(
        "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps\na,0,llama-tiny,lora,4,20,3\n"
    )
    ran = loramux("run", "--state", "state", *arguments, cwd=folder)
    assert ran.returncode == 2 and said in ran.stderr, ran.stderr
    assert not (folder / "state").exists()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_that_are_none(scale: float) -> None:
    from loramux_profiles.checked import read_checked
    from loramux_runtime.jobs.jobs_file import BaseConfig
    from loramux_runtime.live.trace_replay import scaled
    from loramux_traces.data import sample_path
    from loramux_traces.errors import UsageError

    for name in ("time_scale", "step_scale"):
        with pytest.raises(UsageError, match=name.replace("_", " ")):
            scaled(
                read_checked(sample_path()), BaseConfig(shape="llama-tiny"), recompute=False,
                **{"time_scale": 1.0, "step_scale": 1.0, name: scale},
            )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id: a\n", "data"),
        ("- 1\n", "mapping"),
        ("id: 'a b'\ndata: {path: rows.jsonl}\nsteps: 1\n", "id"),
        ("id: a\ndata: {path: rows.jsonl}\nsteps: 1\nenvironment: {A: b}\n", "environment"),
        ("id: a\ndata: {path: rows.jsonl}\nsteps: .nan\n", "steps"),
        ("id: a\ndata: {path: rows.jsonl}\nsteps: 1\noptimizer: {lr: 1e400}\n", "lr"),
        ("jobs:\n- {id: a, data: {path: r}, steps: 1}\n- {id: a, data: {path: r}, steps: 1}\n", "used twice"),
        ("id: a\x00\n", "NUL"),
        ("!!python/object/apply:os.system ['true']\n", "is not taken"),
    ],
)
def test_bad_jobs_are_refused(text: str, said: str, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from loramux_runtime.live.state.store import Store

    (folder / "state").mkdir()
    store = Store(folder / "state", create=True)
    (folder / "bad.yaml").write_text(text)
    monkeypatch.chdir(folder)
    ran = cli("submit", "bad.yaml", "--state", "state")
    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert store.jobs() == []
    store.close()
