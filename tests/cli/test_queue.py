"""What the commands beside the scheduler say and refuse, with and without one running."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

pytest.importorskip("torch")

from loramux_runtime.jobs.fingerprint import fingerprint
from loramux_runtime.live.state.store import Store, discard
from loramux_runtime.live.watch.status import read_status
from loramux_runtime.live.watch.watchers import watched
from loramux_traces.errors import StateError
from loramux_traces.locking import owned

from ..tiny_model import CONFIG
from .conftest import Cli

JOB = "id: a\ndata: {path: rows.jsonl}\nsteps: 3\nbatch_size: 2\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(6)))
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_queue_may_be_filled_before_the_first_scheduler_comes(folder: Path, cli: Cli) -> None:
    sent = cli("submit", "job.yaml", "--state", "state")
    assert sent.code == 0 and "no scheduler is running" in sent.out
    assert [row["job_id"] for row in Store(folder / "state").jobs()] == ["a"]
    shown = cli("status", "--state", "state")
    assert "none has run here yet" in shown.out and "ago" not in shown.out
    other = cli("submit", "job.yaml", "--state", ".")
    assert other.code == 6 and "no scheduler's state" in other.err


def test_data_that_is_not_there_is_refused_at_once(folder: Path, cli: Cli) -> None:
    (folder / "job.yaml").write_text(JOB.replace("rows.jsonl", "nowhere.jsonl"))
    sent = cli("submit", "job.yaml", "--state", "state")
    assert sent.code == 2 and "no such file" in sent.err and "nowhere.jsonl" in sent.err
    assert not (folder / "state").exists()


def test_an_unknown_field_of_one_job_is_named_as_it_is_written(folder: Path, cli: Cli) -> None:
    (folder / "job.yaml").write_text(JOB + "adaptor: {rank: 4}\n")
    sent = cli("submit", "job.yaml", "--state", "state")
    assert sent.err.splitlines() == ["loramux: job.yaml:5: column adaptor: is no field; did you mean adapter?"]
    (folder / "job.yaml").write_text("jobs:\n- {id: a, data: {path: r}, steps: 1, optimizer: {learning: 1}}\n")
    sent = cli("submit", "job.yaml", "--state", "state")
    assert sent.err.splitlines() == [
        "loramux: job.yaml:2: column jobs.0.optimizer.learning: is no field (known: name, lr, weight_decay, betas, eps, momentum)"
    ]


def test_nobody_is_drained_or_paused_in_vain(folder: Path, cli: Cli) -> None:
    cli("submit", "job.yaml", "--state", "state")
    drained = cli("drain", "--state", "state")
    assert drained.code == 2 and "none to drain" in drained.err
    store = Store(folder / "state")
    store.update("a", state="COMPLETED")
    for verb in ("pause", "resume", "cancel"):
        ran = cli(verb, "a", "--state", "state")
        assert (ran.code, "has ended already: COMPLETED" in ran.err) == (2, True)
    store.update("a", state="REJECTED")
    assert cli("resume", "a", "--state", "state").code == 0
    assert [row["verb"] for row in store.open_commands()] == ["resume"]


def test_a_trace_of_another_base_is_said(folder: Path, cli: Cli) -> None:
    (folder / "jobs.csv").write_text(
        "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps\nt,0,llama-tiny,lora,4,20,3\n"
    )
    Store(folder, create=True).set_facts(base_model="tiny-qwen2")
    sent = cli("submit", "jobs.csv", "--state", ".")
    assert sent.code == 0 and "its jobs are of llama-tiny; here they train on tiny-qwen2" in sent.err


def test_the_last_prometheus_file_says_that_nobody_is_there(folder: Path, cli: Cli) -> None:
    cli("submit", "job.yaml", "--state", "state")
    store = Store(folder / "state")
    with owned(folder / "state"), watched(store, folder / "x.prom", None, print) as watchers:
        store.set_facts(now_s=1.0, now_unix_s=1.0, resident=1)
        store.update("a", state="RUNNING")
        watchers.on_flush[0]()
        assert "loramux_running 1" in (folder / "x.prom").read_text()
        store.update("a", state="COMPLETED")
        watchers.on_flush[0]()  # too soon after the last
        assert 'loramux_jobs{state="RUNNING"} 1' in (folder / "x.prom").read_text()
    text = (folder / "x.prom").read_text()
    assert "loramux_running 0" in text and 'loramux_jobs{state="COMPLETED"} 1' in text
    assert "loramux_resident_jobs 0" in text and 'loramux_jobs{state="RUNNING"} 0' in text


def test_a_folder_that_may_only_be_read_can_be_looked_at(folder: Path, cli: Cli) -> None:
    cli("submit", "job.yaml", "--state", "state")
    before = sorted(path.name for path in (folder / "state").iterdir())
    store = Store(folder / "state", read_only=True)
    assert [job["job_id"] for job in read_status(store)["jobs"]] == ["a"] and store.records("a") == []
    with pytest.raises(StateError, match="cannot be written"):
        store.command("cancel", "a")
    store.close()
    assert sorted(path.name for path in (folder / "state").iterdir()) == before


def test_arrivals_to_come_are_told_from_jobs_not_looked_at(folder: Path, cli: Cli) -> None:
    cli("submit", "job.yaml", "--state", "state")
    store = Store(folder / "state")
    store.update("a", submit_s=1e9)
    store.set_facts(now_s=0.0)
    with owned(folder / "state"):
        (job,) = read_status(store)["jobs"]
    assert job["why"].startswith("is submitted in ")


def test_other_weights_have_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(300_000))
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    weights.write_bytes(bytes(299_999) + b"\x01")
    assert fingerprint(tmp_path) != first
    (tmp_path / "config.json").unlink()
    with pytest.raises(StateError, match="cannot be read"):
        fingerprint(tmp_path)


def test_a_first_start_that_fails_binds_nothing(folder: Path, cli: Cli) -> None:
    """Neither its base nor its policy; and the queue that was filled before it is kept."""
    cli("submit", "job.yaml", "--state", "state")
    for wrong in (("--base", "llama-7b", "--policy", "nix"), ("--base", "job.yaml")):
        assert cli("run", "--state", "state", "--no-supervise", *wrong).code == 2
    (folder / "base.yaml").write_text(json.dumps({"base": {"config": CONFIG}}))
    right = ("--base", "base.yaml", "--policy", "fifo", "--exit-when-idle", "--no-supervise")
    ran = cli("run", "--state", "state", *right)
    assert ran.code == 0 and "ended: 1 COMPLETED" in ran.err, ran.err
    other = cli("run", "--state", "state", "--base", "llama-tiny", "--no-supervise")
    assert other.code == 2 and "another base model (tiny-llama)" in other.err


def test_a_retired_folder_can_be_used_again(folder: Path, cli: Cli) -> None:
    state = folder / "state"
    state.mkdir()
    late = Store(state, create=True)
    (state / "profile.json").write_text("{}")
    discard(state)
    assert not state.exists()
    with pytest.raises(StateError):  # open before, and told that nothing was acknowledged
        late.submit([({"id": "a", "method": "lora", "priority": 0, "user": "", "group": ""}, state, 0.0)])
    state.mkdir()
    (state / "profile.json").write_text("{}")
    assert cli("submit", "job.yaml", "--state", "state").code == 0
    discard(state)
    assert [row["job_id"] for row in Store(state).jobs()] == ["a"]


def test_whoever_makes_a_folder_at_the_same_moment_is_waited_for(tmp_path: Path) -> None:
    """(One in five was told that the database is locked.)."""
    problems: list[BaseException] = []

    def make(state: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            Store(state, create=True).close()
        except StateError as error:
            problems.append(error)

    for i in range(40):
        state, barrier = tmp_path / f"s{i}", threading.Barrier(2)
        state.mkdir()
        both = [threading.Thread(target=make, args=(state, barrier)) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert problems == []
