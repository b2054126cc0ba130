"""A live scheduler under random arrivals, cancels, pauses, policy changes and kills.

It runs for as long as it is told to.

    python tests/benchmarks/soak_live.py --minutes 30 --out analysis/results/live-cpu/soak.json

Kills fall in the first and the last third; the middle one is left alone, so that one process's
memory can be watched. Every acknowledged job must end once: completed, or cancelled because it was
asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from loramux_runtime.jobs.jobs_file import TrainJob
from loramux_runtime.live.state.job_rows import OPEN
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.status import read_status
from loramux_traces.errors import LoramuxError
from loramux_traces.filesafe import write_json
from loramux_traces.locking import owner

METHODS: tuple[dict[str, Any], ...] = (
    {"method": "lora", "adapter": {"rank": 8, "dropout": 0.1}},
    {"method": "lora", "adapter": {"rank": 8, "use_dora": True}},
    {"method": "mixlora", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "mola", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "dynmole", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "loramoe", "adapter": {"rank": 4, "num_experts": 2}},
)
POLICIES = ("fifo", "aspen", "srtf", "las", "priority", "aspen-minpad", "best-fit")
BASE = """base:
  config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, vocab_size: 280}
"""


def rss_mib(pid: int) -> float:
    """Resident memory of a process (0: it is gone)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def files_open(pid: int) -> int:
    """Open file descriptors of a process."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


class Soak:
    """One soak on one state folder."""

    def __init__(self, folder: Path, minutes: float, seed: int) -> None:
        self.folder, self.state = folder, folder / "state"
        self.seconds = minutes * 60
        self.draw = random.Random(seed)
        self.process: subprocess.Popen[bytes] | None = None
        self.submitted = 0
        self.cancelled: set[str] = set()
        self.counts = dict.fromkeys(("kills", "terms", "cancels", "pauses", "policies", "exports"), 0)
        self.samples: list[dict[str, float]] = []
        (folder / "base.yaml").write_text(BASE)
        rows = [{"text": f"row {i} {'abc ' * (i % 17)}"} for i in range(200)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self) -> None:
        """A supervised scheduler."""
        options = ["--checkpoint-every", "2", "--max-resident", "6", "--quiet", "--prometheus", "soak.prom"]
        command = [sys.executable, "-m", "loramux_cli.main", "run", "--state", "state", "--base", "base.yaml", *options]
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=said, stderr=said)

    def run(self) -> dict[str, Any]:
        """The whole soak; its figures."""
        began = time.monotonic()
        self.start()
        while not (self.state / "queue.sqlite3").exists():
            time.sleep(0.1)
        time.sleep(0.5)
        store = Store(self.state)
        sampled = 0.0
        while (now := time.monotonic() - began) < self.seconds:
            calm = 1 / 3 <= now / self.seconds <= 2 / 3
            self.act(store, calm=calm)
            if now - sampled > 5:
                sampled = now
                self.sample(store, now)
            time.sleep(self.draw.expovariate(2.0))
        return self.end(store, began)

    def act(self, store: Store, *, calm: bool) -> None:
        """One random thing."""
        open_jobs = [row["job_id"] for row in store.jobs(*OPEN)]
        chance = self.draw.random()
        try:
            if chance < 0.5 and len(open_jobs) < 20:
                self.submit(store)
            elif chance < 0.6 and open_jobs:
                job_id = self.draw.choice(open_jobs)
                self.cancelled.add(job_id)
                store.command("cancel", job_id)
                self.counts["cancels"] += 1
            elif chance < 0.72 and open_jobs:
                job_id = self.draw.choice(open_jobs)
                store.command("pause", job_id)
                store.command("resume", job_id)
                self.counts["pauses"] += 1
            elif chance < 0.76:
                store.command("policy", "", self.draw.choice(POLICIES))
                self.counts["policies"] += 1
            elif chance < 0.8 and open_jobs:
                self.counts["exports"] += 1
                store.command("export", self.draw.choice(open_jobs), str(self.folder / "exports" / str(self.submitted)))
            elif chance < 0.805 and not calm:
                pid = owner(self.state)
                if pid is not None:
                    self.counts["kills"] += 1
                    os.kill(pid, signal.SIGKILL)
            elif chance < 0.81 and not calm and self.process is not None:
                self.counts["terms"] += 1
                self.process.send_signal(signal.SIGTERM)
                self.process.wait(120)
                self.start()
        except (LoramuxError, ProcessLookupError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)

    def submit(self, store: Store) -> None:
        """One job."""
        draw = self.draw
        batch = draw.choice((2, 4, 8))
        job = {
            "id": f"job{self.submitted:05d}",
            "data": {"path": str(self.folder / "rows.jsonl")},
            "batch_size": batch,
            "micro_batch_size": draw.choice((batch, max(1, batch // 2))),
            "steps": draw.randint(2, 60),
            "priority": draw.randint(0, 3),
            "seed": self.submitted,
            "optimizer": {"lr": 0.005},
            **draw.choice(METHODS),
        }
        store.submit([(TrainJob.model_validate(job).model_dump(mode="json"), self.folder, 0.0)])
        self.submitted += 1

    def sample(self, store: Store, now: float) -> None:
        """Memory, files and jobs right now."""
        pid = owner(self.state) or 0
        self.samples.append(
            {
                "t_s": round(now, 1),
                "pid": pid,
                "rss_mib": round(rss_mib(pid), 1),
                "open_files": files_open(pid),
                "supervisor_rss_mib": round(rss_mib(self.process.pid if self.process else 0), 1),
                "checkpoint_files": sum(1 for _ in (self.state / "checkpoints").rglob("*")),
                "open_jobs": len(store.jobs(*OPEN)),
                "database_mib": round((self.state / "queue.sqlite3").stat().st_size / 2**20, 2),
            }
        )

    def end(self, store: Store, began: float) -> dict[str, Any]:
        """Let everything finish, and count."""
        for row in store.jobs("HELD"):
            store.command("resume", row["job_id"])
        until = time.monotonic() + 600
        while store.jobs(*OPEN) and time.monotonic() < until:
            for row in store.jobs("HELD"):
                store.command("resume", row["job_id"])
            time.sleep(1.0)
        assert self.process is not None
        store.command("drain")
        code = self.process.wait(120)
        rows = store.jobs()
        states: dict[str, int] = {}
        for row in rows:
            states[row["state"]] = states.get(row["state"], 0) + 1
        ends: dict[str, int] = {}
        for event in store.events():
            if event["event"] == "finish":
                ends[event["job_id"]] = ends.get(event["job_id"], 0) + 1
        done = {row["job_id"] for row in rows if row["state"] == "COMPLETED"}
        whole = all(
            [record["step"] for record in store.records(job_id)] == list(range(1, store.job(job_id)["step"] + 1))
            for job_id in done
        )
        left = sorted(str(path.relative_to(self.state)) for path in (self.state / "checkpoints").rglob("*"))
        return {
            "minutes": (time.monotonic() - began) / 60,
            "submitted": self.submitted,
            "states": states,
            "lost": self.submitted - len(rows),
            "finished_twice": sum(n > 1 for n in ends.values()),
            "completed_without_end": len(done - ends.keys()),
            "cancelled_unasked": sum(
                row["state"] == "CANCELLED" and row["job_id"] not in self.cancelled for row in rows
            ),
            "failed": [
                (row["job_id"], row["state"], row["reason"]) for row in rows if row["state"].startswith("FAILED")
            ],
            "curves_whole": whole,
            "exit_code": code,
            "checkpoint_files_left": left,
            "adapters": len(list((self.state / "adapters").iterdir())),
            **self.counts,
            "restarts": read_status(store)["restarts"],
            "middle_third": self.middle(),
            "samples": self.samples,
        }

    def middle(self) -> dict[str, Any]:
        """Growth of the one process that nobody killed, by least squares over the middle third."""
        inside = [s for s in self.samples if 1 / 3 <= s["t_s"] / self.seconds <= 2 / 3]
        pids = [s["pid"] for s in inside]
        same = [s for s in inside if s["pid"] == max(set(pids), key=pids.count)] if inside else []
        if len(same) < 10:
            return {"samples": len(same)}
        t = np.array([s["t_s"] for s in same])
        rss = np.array([s["rss_mib"] for s in same])
        files = np.array([s["open_files"] for s in same])
        return {
            "samples": len(same),
            "minutes": float((t[-1] - t[0]) / 60),
            "rss_mib_first": float(rss[: len(rss) // 4].mean()),
            "rss_mib_last": float(rss[-len(rss) // 4 :].mean()),
            "rss_mib_per_minute": float(np.polyfit(t / 60, rss, 1)[0]),
            "open_files_first": int(files[0]),
            "open_files_last": int(files[-1]),
        }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), given.minutes, given.seed)
        try:
            found = soak.run()
        finally:
            if soak.process is not None and soak.process.poll() is None:
                soak.process.terminate()
                soak.process.wait(120)
        found["said"] = (Path(folder) / "said").read_text().splitlines()[-20:]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, found)
    print(json.dumps({key: value for key, value in found.items() if key not in ("samples", "said")}, indent=2))


if __name__ == "__main__":
    main()
