"""Faults of processes: policies that misbehave, signals in quick succession, kills."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from live_fault_try import COMMAND, Try, jobs
from loramux_traces.locking import owner

POLICY: Final = '''
import os, time
from loramux_policies.policy import Policy


class Bad(Policy):
    """Starts whatever fits, and does something else beside."""

    name = "bad"
    calls = 0

    def place(self, view):
        Bad.calls += 1
        {act}
        plan = view.plan()
        for job in view.waiting(view.n_waiting):
            plan.start_first(job.job_id)
        return plan
'''
ACTS: Final = {
    "changes its folder": 'os.chdir("/")',
    "forks": "if Bad.calls == 2 and os.fork() == 0: time.sleep(20); os._exit(0)",
    "forks and returns": "if Bad.calls == 2: os.fork()",
    "eats memory": "Bad.kept = getattr(Bad, 'kept', []) + [bytearray(1 << 40)]",
    "grows": "Bad.kept = getattr(Bad, 'kept', []) + [b'x' * (64 << 20)]",
    "ends the process": "if Bad.calls == 2: os._exit(1)",
    "raises SystemExit": "if Bad.calls == 2: raise SystemExit(0)",
    "ignores signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
}


def policy(t: Try, act: str) -> None:
    """A policy of a user's own file does something that it ought not."""
    (t.folder / "bad.py").write_text(POLICY.format(act=act))
    t.submit(jobs(4, 150))
    t.run("--policy-file", "bad.py", "--policy", "bad", "--max-resident", "2")
    t.until(lambda: sum(row["state"] == "COMPLETED" for row in t.rows()) == 4, "the jobs end")
    t.found.said = next((line for line in t.said().splitlines() if line.startswith("loramux:")), "")
    said = t.found.said
    t.stop()
    t.found.code, t.found.said = None, said
    t.cure("--policy", "fifo")


def twice(t: Try, *, delay_s: Callable[[random.Random], float], signals: tuple[int, int], tries: int = 6) -> None:
    """Two signals in quick succession at many moments."""
    draw = random.Random(os.urandom(8))
    t.submit(jobs(4, 150))
    codes = []
    for _ in range(tries):
        process = t.run()
        time.sleep(delay_s(draw))
        process.send_signal(signals[0])
        time.sleep(draw.choice((0.0, 0.001, 0.01, 0.1)))
        process.send_signal(signals[1])
        asked = time.monotonic()
        code = t.wait(30)
        took = time.monotonic() - asked
        codes.append(code)
        t.expect(code in {128 + number for number in signals}, f"exit {code}: {t.last_line()[:100]}")
        t.expect(took < 2, f"ends after {took:.1f} s")
        until = time.monotonic() + 10
        while t.state.exists() and owner(t.state) is not None and time.monotonic() < until:
            time.sleep(0.05)
        t.expect(not t.state.exists() or owner(t.state) is None, "the scheduler outlives its supervisor")
        if process.poll() is None:
            process.kill()
    t.found.code, t.found.said = codes[-1], ""
    t.found.notes.append(f"{tries} moments each")
    t.cure()


def once(t: Try, *, wait_s: float, tries: int = 4) -> None:
    """SIGTERM while it loads: the end comes within a second."""
    draw = random.Random(os.urandom(8))
    t.submit(jobs(4, 150))
    slow = 0.0
    for _ in range(tries):
        process = t.run()
        time.sleep(draw.uniform(0.3, wait_s))
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        t.found.code = t.wait(30)
        slow = max(slow, time.monotonic() - asked)
        t.expect(t.found.code == 143, f"exit {t.found.code}: {t.last_line()[:100]}")
    t.found.notes.append(f"at most {slow:.2f} s, {tries} moments each")
    t.expect(slow < 1.5, f"ends after {slow:.1f} s")
    t.cure()


def reading(t: Try) -> None:
    """SIGTERM while rows are read: a long file."""
    with (t.folder / "long.jsonl").open("w") as file:
        for i in range(200_000):
            file.write(f'{{"text": "row {i} {"abc " * (i % 40)}"}}\n')
    one = {**jobs(1, 150, first=3)[0], "id": "long", "data": {"path": "long.jsonl"}}
    t.submit(jobs(1, 150))
    t.expect(t.submit([one]).returncode == 0, "not submitted")
    t.acknowledged.pop("long", None)
    process = t.run()
    t.until(lambda: any(row["state"] == "RUNNING" for row in t.rows()), "training")
    time.sleep(random.uniform(0.2, 1.5))
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    t.ends(143)
    took = time.monotonic() - asked
    t.found.notes.append(f"after {took:.2f} s")
    t.expect(took < 1.5, f"ends after {took:.1f} s")
    t.cli("cancel", "long", "--state", "state")
    t.cure()


def killed(t: Try) -> None:
    """SIGKILL of the scheduler, then of the supervisor."""
    t.begin()
    pid = owner(t.state)
    assert pid is not None and t.process is not None
    os.kill(pid, signal.SIGKILL)
    t.until(lambda: owner(t.state) not in (None, pid) and t.steps() > 0 and t.moves(), "it goes on")
    t.process.kill()
    t.process.wait()
    until = time.monotonic() + 20
    while owner(t.state) is not None and time.monotonic() < until:
        time.sleep(0.05)
    t.expect(owner(t.state) is None, "a scheduler outlives its supervisor")
    t.found.code = 137
    t.cure()


CASES: Final[dict[str, Callable[[Try], None]]] = {
    **{f"policy that {what}": partial(policy, act=act) for what, act in ACTS.items()},
    "SIGTERM twice in mid-training": partial(
        twice, delay_s=lambda draw: draw.uniform(6, 9), signals=(signal.SIGTERM, signal.SIGTERM)
    ),
    "SIGTERM twice while it comes up": partial(
        twice, delay_s=lambda draw: draw.uniform(0.3, 6), signals=(signal.SIGTERM, signal.SIGTERM)
    ),
    "SIGINT, then SIGTERM": partial(
        twice, delay_s=lambda draw: draw.uniform(0.5, 9), signals=(signal.SIGINT, signal.SIGTERM)
    ),
    "SIGTERM once while it comes up": partial(once, wait_s=7.0),
    "SIGTERM while rows are read": reading,
    "SIGKILL of the scheduler, then of its supervisor": killed,
}
__all__ = ["CASES", "COMMAND"]
