"""`loramux train` that is stopped and goes on: what is saved, said, and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from loramux_traces.errors import StateError
from loramux_traces.runfolder import read_run

from ..waiting import communicated, cpu_s, finished, until, worked
from .conftest import Cli
from .test_train import write
from .test_train_dry_run import model_folder

LONG = {"id": "long", "steps": 100, "adapter": {"rank": 4, "dropout": 0.1}}
SHORT = {"id": "short", "method": "mola", "steps": 2}


def started(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`loramux train` in a process of its own."""
    command = [sys.executable, "-m", "loramux_cli.main", "train", str(file), "--out", str(out), "--device", "cpu"]
    return subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy(), text=True
    )


def left(out: Path) -> tuple[dict[tuple[str, int], Any], dict[str, bytes]]:
    """Records by job and step, and the adapters' files."""
    rows = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    times = [row.pop("t_s") for row in rows]
    assert times == sorted(times)
    records = {(row["job_id"], row["step"]): row for row in rows}
    assert len(records) == len(rows)
    adapters = out / "adapters"
    return records, {
        str(path.relative_to(adapters)): path.read_bytes() for path in adapters.rglob("*") if path.is_file()
    }


def test_a_signal_saves_everything_and_resume_goes_on_with_the_same_bits(cli: Cli, tmp_path: Path) -> None:
    file, out, whole = write(tmp_path, [LONG, SHORT]), tmp_path / "out", tmp_path / "whole"
    common = ("--device", "cpu")
    assert cli("train", file, "--out", whole, *common, "--quiet").code == 0
    with started(file, out) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training"):
                break
        worked(process, (cpu_s(process.pid) or 0.0) + 0.2)  # it has begun to train: a step takes a tenth of that
        process.send_signal(signal.SIGTERM)
        _, err = communicated(process)
        assert process.returncode == 143, err
    assert "terminated: 2 jobs: 1 COMPLETED, 1 unfinished with a checkpoint" in err
    assert "long: step" in err and str(out / "progress" / "checkpoints" / "long") in err
    assert f"adapter in {out / 'adapters' / 'short'}" in err
    assert err.count(f"go on with: loramux train {file} --out {out} --device cpu --resume") == 1
    run = read_run(out)
    table = run.jobs.set_index("job_id")
    assert table["final_state"].to_dict() == {"long": "UNFINISHED", "short": "COMPLETED"}
    assert 0 < table["steps_done"]["long"] < 100 and table["starting_time"]["long"] >= 0
    assert len(left(out)[0]) == int(table["steps_done"]["long"]) + 2

    again = cli("train", file, "--out", out, *common)
    assert again.code == 6 and "--resume goes on with it" in again.err and "long: step" in again.err
    _refused_with_what_changed(cli, file, out)

    ran = cli("train", file, "--out", out, *common, "--resume")
    assert ran.code == 0, ran.err
    assert "training 1 jobs under aspen (1 ended before)" in ran.err and "short" in ran.out
    assert left(out) == left(whole)
    run = read_run(out)
    assert list(run.jobs["final_state"]) == ["COMPLETED"] * 2 and run.manifest["interruptions"] == 1
    assert run.summary["steps"] == read_run(whole).summary["steps"]
    assert (run.jobs["turnaround_time"] > 0).all() and len(run.timeline["segments"]["job_id"]) == 3
    assert not (out / "progress").exists() and cli("plot", out, "--kind", "gantt").code == 0

    ran = cli("train", file, "--out", out, *common, "--resume")
    assert ran.code == 0 and "the run is whole" in ran.err and left(out) == left(whole)
    changed = write(tmp_path, [LONG, SHORT, {"id": "new"}])
    ran = cli("train", changed, "--out", out, *common, "--resume")
    assert ran.code == 2 and "job new is new" in ran.err


def _refused_with_what_changed(cli: Cli, file: Path, out: Path) -> None:
    """Nothing of the run is touched."""
    before = {path: path.read_bytes() for path in (out / "progress").rglob("*") if path.is_file()}
    text, rows = file.read_text(), (file.parent / "rows.jsonl").read_text()

    def refused(said: str, *options: str) -> None:
        ran = cli("train", file, "--out", out, "--device", "cpu", "--resume", *options)
        assert (ran.code, ran.out) == (2, "") and said in ran.err, ran.err

    refused("--policy is fifo and was aspen", "--policy", "fifo")
    refused("--max-resident is 1 and was not given", "--max-resident", "1")
    refused("--memory is 2GiB and was not given", "--memory", "2GiB")
    refused("give one of them", "--force")
    content = yaml.safe_load(text)
    file.write_text(text.replace("steps: 100", "steps: 101"))
    refused("job long: steps is 101 and was 100")
    file.write_text(yaml.safe_dump({**content, "base": {"config": {**content["base"]["config"], "vocab_size": 281}}}))
    refused("base.config is ")
    file.write_text(yaml.safe_dump({**content, "jobs": content["jobs"][1:]}))
    refused("job long is gone")
    file.write_text(text)
    (file.parent / "rows.jsonl").write_text(rows.replace("say 3", "say x"))
    refused("job long: its rows are not those that the run began with (the data file changed)")
    (file.parent / "rows.jsonl").write_text(rows)
    assert {path: path.read_bytes() for path in (out / "progress").rglob("*") if path.is_file()} == before


def test_there_may_be_nothing_to_go_on_with(cli: Cli, tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    ran = cli("train", file, "--out", out, "--device", "cpu", "--resume")
    assert ran.code == 2 and "no run of loramux train to go on with" in ran.err and not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    ran = cli("train", file, "--out", out, "--device", "cpu", "--resume")
    assert ran.code == 2 and [path.name for path in out.iterdir()] == ["mine.txt"]


def test_force_starts_an_unfinished_run_anew(cli: Cli, tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    _begun(cli, file, out)
    assert cli("simulate", "--out", out, "--force", "--quiet").code == 6  # only train may
    assert cli("train", file, "--out", out, "--device", "cpu", "--force", "--quiet").code == 0
    assert not (out / "progress").exists() and list(read_run(out).jobs["final_state"]) == ["COMPLETED"] * 2


def _begun(cli: Cli, file: Path, out: Path, *options: str) -> None:
    """A run that is cut before its first step."""
    from loramux_runtime.train import run as train

    def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.StepDriver, "run", broken)
        ran = cli("train", file, "--out", out, "--device", "cpu", *options)
    assert ran.code == 1 and "the run was cut: " in ran.err and "not begun or not saved yet" in ran.err
    assert "go on with: loramux train" in ran.err and (out / "progress").is_dir()


def test_a_run_that_was_cut_before_its_first_step_goes_on_too(cli: Cli, tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    _begun(cli, file, out)
    assert cli("train", file, "--out", out, "--device", "cpu", "--resume", "--quiet").code == 0
    assert list(read_run(out).jobs["final_state"]) == ["COMPLETED"] * 2


def _outline_only(build: Any, *args: Any, **options: Any) -> Any:
    assert options["device"] == "meta", "the base model is loaded"
    return build(*args, **options)


def test_a_run_that_was_cut_after_its_last_job_is_made_whole(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are written; the base model is not needed for that."""
    from loramux_cli import train as command
    from loramux_runtime.jobs import bases

    file, out = write(tmp_path), tmp_path / "out"

    def full(*_: Any) -> None:
        raise StateError("jobs.csv: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(command, "_write", full)
        ran = cli("train", file, "--out", out, "--device", "cpu")
    assert ran.code == 6 and "the results cannot be written: 2 jobs: 2 COMPLETED" in ran.err
    monkeypatch.setattr(bases, "build_base", partial(_outline_only, bases.build_base))
    ran = cli("train", file, "--out", out, "--device", "cpu", "--resume")
    assert ran.code == 0 and "Measured on cpu" in ran.out and "2/2 jobs" in ran.out
    run = read_run(out)
    assert list(run.jobs["steps_done"]) == [3, 3] and run.summary["steps"] > 0
    assert len(left(out)[0]) == 6 and not (out / "progress").exists()


def test_an_adapter_that_is_gone_is_missed(cli: Cli, tmp_path: Path) -> None:
    """Somebody has deleted the folder while the run was on."""
    import shutil

    from loramux_runtime.train import run as train

    save = train.save_adapter

    def deleted(adapter: Any, folder: Path, name: str, **options: Any) -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        save(adapter, folder, name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_adapter", deleted)
        ran = cli("train", write(tmp_path), "--out", tmp_path / "out", "--device", "cpu")
    assert ran.code == 6 and "adapters are gone that were written there: " in ran.err


def test_a_run_that_was_interrupted_is_not_replayed_as_one(cli: Cli, tmp_path: Path) -> None:
    from loramux_policies.stepping.stream import Stream

    file, out = write(tmp_path), tmp_path / "out"
    _begun(cli, file, out, "--record")
    assert cli("train", file, "--out", out, "--device", "cpu", "--record", "--resume", "--quiet").code == 0
    with pytest.raises(StateError, match="was interrupted"):
        Stream.of(read_run(out).events(), {"a": 4, "b": 4})


DATED = (
    "[{{ strftime_now('%d %b %Y') }}]{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_that_writes_the_date_is_told_that_of_the_beginning(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on the next day finds the rows that it began with."""
    from loramux_runtime.data import byte_tokenizer
    from loramux_runtime.train import checks

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(days=1)

    folder = model_folder(tmp_path / "model")
    tokenizer = byte_tokenizer().hf
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in range(8)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"path": "chats.jsonl", "template": None, "eval_rows": None}
    file, out = write(tmp_path, [{"id": "a", "data": data}], base={"path": "model"}), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(checks, "datetime", Yesterday)
        _begun(cli, file, out)
    ran = cli("train", file, "--out", out, "--device", "cpu", "--resume")
    assert ran.code == 0, ran.err
    # without that date the rows are others
    _begun(cli, file, tmp_path / "other")
    begun = datetime.now(UTC) - timedelta(days=1)
    with monkeypatch.context() as patch:
        patch.setattr(checks, "datetime", Yesterday)
        patch.setattr("loramux_runtime.train.progress.Progress.begun_at", property(lambda _: begun))
        ran = cli("train", file, "--out", tmp_path / "other", "--device", "cpu", "--resume")
    assert ran.code == 2 and "the date (" in ran.err


def test_a_damaged_journal_is_named(cli: Cli, tmp_path: Path) -> None:
    file, out = write(tmp_path), tmp_path / "out"
    _begun(cli, file, out)
    (out / "progress" / "journal.sqlite").write_bytes(b"not a database" * 99)
    for options in ((), ("--resume",)):
        ran = cli("train", file, "--out", out, "--device", "cpu", *options)
        assert ran.code == 6 and "journal.sqlite" in ran.err


def test_a_signal_before_training_ends_it_at_once(tmp_path: Path) -> None:
    """No matter what the main thread does: here it reads rows for a long time."""
    file, out = write(tmp_path), tmp_path / "new" / "out"
    row = json.dumps({"instruction": "say " + "many words " * 50, "output": "yes"}) + "\n"
    (tmp_path / "rows.jsonl").write_text(row * 5_000)
    with started(file, out) as process:
        until(lambda: (out / ".loramux.lock").exists(), process=process)
        worked(process, (cpu_s(process.pid) or 0.0) + 0.2)
        process.send_signal(signal.SIGINT)
        assert finished(process) == 130
        assert process.stderr is not None and process.stderr.read().endswith("nothing was trained\n")
    assert not (tmp_path / "new").exists()


STOPPING = """
import signal, sys, time
from loramux_runtime.train.signals import StopSignals
with StopSignals(lambda number: print("ended", number, flush=True)) as signals:
    if sys.argv[1] in ("training", "ignored"):
        if sys.argv[1] == "ignored":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            signals.hold()
        with signals.training(lambda: print("asked", flush=True)):
            print("ready", flush=True)
            time.sleep(1000)
    print("ready", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize(("phase", "said"), [("training", "asked"), ("ignored", "asked"), ("before", "ended 15")])
def test_signals_are_heard_while_the_main_thread_is_elsewhere(phase: str, said: str) -> None:
    """The first asks for a stop, where something is in training, and the second ends it at once."""
    with subprocess.Popen([sys.executable, "-c", STOPPING, phase], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"{said}\n"
        if phase != "before":
            process.send_signal(signal.SIGTERM)
        assert finished(process) == 143
