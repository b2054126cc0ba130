"""One try of one fault: a folder of its own, a real `loramux run` on it, and what came of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loramux_runtime.live.state.job_rows import OPEN
from loramux_runtime.live.state.marker import read_marker
from loramux_runtime.live.state.store import DATABASE, Store
from loramux_runtime.live.watch.status import read_status
from loramux_traces.errors import StateError
from loramux_traces.locking import owner

BASE: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 280,
}
METHODS: Final[tuple[dict[str, Any], ...]] = (
    {"method": "lora", "adapter": {"rank": 8, "dropout": 0.1}},
    {"method": "mixlora", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "lora", "adapter": {"rank": 8, "use_dora": True}},
    {"method": "dynmole", "adapter": {"rank": 4, "num_experts": 4}},
)
RUN: Final = ("--base", "base", "--checkpoint-every", "0.5", "--quiet")
COMMAND: Final = (sys.executable, "-m", "loramux_cli.main")
MOST_S: Final = 300.0
"""Seconds after which a process that ought to end counts as hung."""
LOST_FOLDER: Final = 6


def make_base(folder: Path) -> None:
    """Write a tiny llama with random weights into a folder, as Hugging Face has it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **BASE)
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder)


def jobs(n: int, steps: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Return `n` jobs of several methods over rows.jsonl."""
    return [
        {
            "id": f"job{i:02d}",
            "data": {"path": "rows.jsonl"},
            "batch_size": 4,
            "micro_batch_size": 4,
            "steps": steps,
            "seed": i,
            "optimizer": {"lr": 0.005},
            **METHODS[i % len(METHODS)],
        }
        for i in range(first, first + n)
    ]


def digest(folder: Path) -> str:
    """Return a SHA-256 of an adapter's tensors."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.read_bytes())
    return found.hexdigest()


@dataclass
class Found:
    """What one try has shown."""

    code: int | None = None
    said: str = ""
    lost: int = 0
    twice: int = 0
    differ: int = 0
    restarts: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Try:
    """A folder with a base, rows, jobs and a state folder, and the processes on it.

    `whole` takes the digests of the adapters of an undisturbed run, by job and steps.
    """

    def __init__(self, base: Path, whole: dict[tuple[str, int], str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fault-"))
        self.folder.chmod(0o755)
        self.state = self.folder / "state"
        shutil.copytree(base, self.folder / "base")
        rows = [{"text": f"row {i} {'abc ' * (i % 17)}"} for i in range(200)]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.found, self.whole = Found(), whole
        self.acknowledged: dict[str, int] = {}
        """Steps of every job of which `submit` said that it is submitted."""
        self.process: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        self._undo: list[Callable[[], object]] = []

    # -- what a user does

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        prefix: Sequence[str] = options.pop("prefix", ())
        done = subprocess.run(
            [*prefix, *COMMAND, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=MOST_S, **options
        )
        self.expect("Traceback" not in done.stderr, f"{arguments[0]} prints a traceback")
        self.expect("internal error" not in done.stderr, f"{arguments[0]}: internal error")
        return done

    def submit(self, found: Sequence[dict[str, Any]], **options: Any) -> subprocess.CompletedProcess[str]:
        """Submit jobs; those that are acknowledged must not be lost."""
        file = self.folder / f"jobs{len(self.acknowledged)}.json"
        file.write_text(json.dumps({"jobs": list(found)}))
        done = self.cli("submit", file.name, "--state", "state", **options)
        if done.returncode == 0:
            self.acknowledged.update({job["id"]: job["steps"] for job in found})
        return done

    def run(self, *more: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a supervised scheduler."""
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [*COMMAND, "run", "--state", "state", *RUN, *more], cwd=self.folder, stdout=said, stderr=said, **options
            )
        return self.process

    def begin(self, n: int = 4, steps: int = 150, *more: str, at: int = 20, **options: Any) -> None:
        """Submit jobs, run them, and wait until they are in the middle of their training."""
        self.expect(self.submit(jobs(n, steps)).returncode == 0, "the jobs cannot be submitted")
        self.run(*more, **options)
        self.until(lambda: self.steps() >= at, "the jobs train")

    def wait(self, most_s: float = MOST_S) -> int | None:
        """Wait for the scheduler's end; return its exit code, None where it goes on."""
        assert self.process is not None
        try:
            return self.process.wait(most_s)
        except subprocess.TimeoutExpired:
            return None

    def ends(self, *codes: int, most_s: float = 60.0) -> None:
        """Expect the scheduler to end with one of these codes."""
        self.found.code = self.wait(most_s)
        self.found.said = self.last_line()
        self.expect(self.found.code in codes, f"exit {self.found.code}, not {codes}")

    def stop(self) -> None:
        """Stop the scheduler with SIGTERM."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.ends(143)

    # -- what it is at

    def steps(self) -> int:
        """Return the most steps that a job of the step under way has done."""
        doing = read_marker(self.state)
        return 0 if doing is None or doing.phase != "step" else int(max(doing.jobs.values(), default=0))

    def marked_idle(self) -> bool:
        """Return whether the scheduler has nothing to do."""
        doing = read_marker(self.state)
        return doing is not None and doing.phase == "idle"

    def moves(self, seconds: float = 5.0) -> bool:
        """Return whether training gets on."""
        before, until = self.steps(), time.monotonic() + seconds
        while time.monotonic() < until:
            if self.steps() > before:
                return True
            time.sleep(0.02)
        return False

    def status(self) -> dict[str, Any]:
        """Return what `status --json` says."""
        done = self.cli("status", "--state", "state", "--json")
        self.expect(done.returncode == 0, f"status: exit {done.returncode}: {done.stderr.strip()[-100:]}")
        return json.loads(done.stdout) if done.returncode == 0 else {"jobs": [], "states": {}, "unsaved_s": None}

    def said(self) -> str:
        """Return what the scheduler has printed."""
        file = self.folder / "said"
        return file.read_text() if file.exists() else ""

    def last_line(self) -> str:
        """Return the last line that the scheduler has printed."""
        lines = (line for line in reversed(self.said().splitlines()) if "Loading weights" not in line)
        return next((line for line in lines if line.strip()), "")

    def until(self, holds: Callable[[], object], what: str, most_s: float = MOST_S) -> bool:
        """Wait until something holds."""
        end = time.monotonic() + most_s
        while time.monotonic() < end:
            if holds():
                return True
            if self.process is not None and self.process.poll() is not None and not holds():
                break
            time.sleep(0.02)
        self.expect(False, f"waited in vain: {what}")
        return False

    def expect(self, holds: object, text: str) -> None:
        """Note what is wrong where something does not hold."""
        if not holds:
            self.found.wrong.append(text)

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Return inode and content of every file of the state folder, -shm and locks aside."""
        return {
            str(path.relative_to(self.state)): (path.stat().st_ino, path.read_bytes())
            for path in sorted(self.state.rglob("*"))
            if path.is_file() and not path.name.endswith(("-shm", "-wal")) and path.name != DATABASE
        }

    # -- what disturbs it

    def hold_lock(self, *, begin: str = "BEGIN IMMEDIATE") -> subprocess.Popen[bytes]:
        """Hold the queue's lock, or a reading transaction, in another process till it is killed."""
        code = (
            "import sqlite3, sys, time\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n"
            "db.execute(sys.argv[2]); db.execute('SELECT COUNT(*) FROM jobs').fetchone()\n"
            "print('held', flush=True); time.sleep(3600)\n"
        )
        command = [sys.executable, "-c", code, str(self.state / DATABASE), begin]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._others.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def undo(self, call: Callable[[], object]) -> None:
        """Call something when the try ends."""
        self._undo.append(call)

    # -- what came of it

    def cure(self, *more: str, resume: bool = False, **options: Any) -> None:
        """Run everything to its end on a sound folder, and count what is missing."""
        if resume:
            for row in self.rows():
                if row["state"] == "HELD":
                    self.cli("resume", row["job_id"], "--state", "state")
        code, said = self.found.code, self.found.said
        self.run("--exit-when-idle", *more, **options)
        again = self.wait()
        if again != 0:
            self.found.wrong.append(f"after the cure: exit {again}: {self.last_line()[:160]}")
        self.found.code, self.found.said = code, said
        self.count()

    def store(self) -> Store:
        """Return the queue of the folder; the caller closes it."""
        return Store(self.state)

    def rows(self) -> list[Any]:
        """Return the jobs of the folder."""
        try:
            store = self.store()
        except (StateError, sqlite3.Error) as error:
            self.expect(False, f"the queue cannot be read: {error}")
            return []
        try:
            return list(store.jobs())
        finally:
            store.close()

    def count(self) -> None:
        """Count acknowledged jobs that are not completed, ended twice, or have other bits."""
        rows = {row["job_id"]: row for row in self.rows()}
        if not rows and self.acknowledged:
            self.found.lost += len(self.acknowledged)
            return
        store = Store(self.state)
        ends: dict[str, int] = {}
        for event in store.events():
            if event["event"] == "finish":
                ends[event["job_id"]] = ends.get(event["job_id"], 0) + 1
        for job_id, steps in self.acknowledged.items():
            row = rows.get(job_id)
            if row is None or row["state"] != "COMPLETED":
                self.found.lost += 1
                self.found.notes.append(f"{job_id} is {'gone' if row is None else row['state'] + ': ' + row['reason']}")
                continue
            self.found.twice += ends.get(job_id, 0) != 1
            curve = [record["step"] for record in store.records(job_id)]
            if curve != list(range(1, steps + 1)):
                # whoever played the fault has deleted the part of the queue that held these
                self.found.notes.append(f"the curve of {job_id} has {len(curve)} of {steps} steps")
            self.found.differ += digest(self.state / "adapters" / job_id) != self.whole.get((job_id, steps))
        self.found.restarts = read_status(store)["restarts"]
        store.close()

    def close(self) -> None:
        """End what is left, and forget the folder."""
        said = self.said()
        self.expect("Traceback" not in said, "the scheduler prints a traceback")
        self.expect("internal error" not in said, "the scheduler: internal error")
        pid = owner(self.state) if self.state.exists() else None
        for process in [*self._others, *([self.process] if self.process is not None else [])]:
            if process.poll() is None:
                process.kill()
                process.wait()
        if pid is not None and not self.found.wrong:
            time.sleep(0.2)
        for call in reversed(self._undo):
            call()
        if os.environ.get("KEEP_FOLDERS"):
            print(f"kept {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def open_jobs(rows: Sequence[Any]) -> list[str]:
    """Return the jobs that have not ended."""
    return [row["job_id"] for row in rows if row["state"] in OPEN]
