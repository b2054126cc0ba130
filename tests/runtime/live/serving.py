"""A live scheduler on a tiny base, in this process or in one that may be killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loramux_policies import create
from loramux_policies.policy import Policy
from loramux_policies.views import ClusterView, Plan
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_runtime.data import byte_tokenizer
from loramux_runtime.jobs import saving
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import BaseConfig, TrainJob
from loramux_runtime.live.reading.orders import ReadAnswer, ReadOrder
from loramux_runtime.live.reading.read import RowReader
from loramux_runtime.live.reading.row_files import ROWS, RowFiles
from loramux_runtime.live.service import LiveService, Outcome
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_traces.locking import owned

# a copy of tests/tiny_model.py: this file is run by its path, too, and cannot import a neighbour
# of its folder
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 280,
}
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "lora", "adapter": {"rank": 4, "dropout": 0.1}},
    {"method": "mixlora", "adapter": {"rank": 4, "num_experts": 4, "dropout": 0.1}},
    {"method": "mola", "adapter": {"rank": 4, "num_experts": [2, 4]}},
    {"method": "dynmole", "adapter": {"rank": 4, "num_experts": 4}},
    {"method": "loramoe", "adapter": {"rank": 4, "num_experts": 2}},
)


saving.MOST_SHARE = 100.0  # type: ignore[misc]  # checkpoints as often as asked for, whatever they cost


def write_rows(folder: Path, n: int = 24) -> Path:
    """Text rows of several lengths."""
    path = folder / "rows.jsonl"
    texts = [f"{i % 10}{i % 7} is {'abc' * (i % 5)}{i}" for i in range(n)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def jobs(folder: Path, n: int, *, steps: int = 6, **fields: Any) -> list[dict[str, Any]]:
    """`n` jobs of all methods, priorities and lengths.

    Every second with two micro-batches a step.
    """
    data = write_rows(folder)
    return [
        {
            "id": f"job{i:02d}",
            "data": {"path": str(data), "eval_rows": 4} if i % 3 == 0 else {"path": str(data)},
            "batch_size": 4,
            "micro_batch_size": 2 if i % 2 else 4,
            "steps": steps + i % 4,
            "priority": i % 3,
            "seed": i,
            "optimizer": {"lr": 0.01, "name": "sgd", "momentum": 0.9} if i % 5 == 4 else {"lr": 0.01},
            **METHODS[i % len(METHODS)],
            **fields,
        }
        for i in range(n)
    ]


def submit(state: Path, found: Sequence[dict[str, Any]], *, at_s: Sequence[float] | None = None) -> Store:
    """A state folder with these jobs in its queue."""
    state.mkdir(parents=True, exist_ok=True)
    store = Store(state, create=True)
    checked = [TrainJob.model_validate(job) for job in found]
    times = [0.0] * len(checked) if at_s is None else list(at_s)
    store.submit(
        [(job.model_dump(mode="json"), state, t) for job, t in zip(checked, times, strict=True)],
        at_s=at_s is not None,
    )
    return store


def service(
    store: Store,
    policy: Policy | str = "aspen",
    *,
    profile: DeviceProfile | None = None,
    faults: FaultPlan = NONE,
    warn: Callable[[str], None] = lambda text: None,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> LiveService:
    """A scheduler that is ready to play; it ends when nothing is left to do."""
    name = policy if isinstance(policy, str) else policy.name
    values: dict[str, Any] = {"exit_when_idle": True, "checkpoint_s": 0.05, "flush_s": 0.02, **settings}
    return LiveService(
        store,
        LiveSettings(policy=name, **values),
        create(policy) if isinstance(policy, str) else policy,
        profile or load_device("cpu"),
        base=open_base(BaseConfig.model_validate({"config": CONFIG})),
        faults=faults,
        warn=warn,
        **{"reading": ReadHere(store.folder / ROWS), **(options or {})},
    )


class ReadHere:
    """Reads rows in this process, at once: most tests are not about the processes that do it."""

    def __init__(self, folder: Path) -> None:
        self._reader = RowReader(byte_tokenizer(), RowFiles(folder))
        self._answers: list[ReadAnswer] = []

    def send(self, order: ReadOrder) -> None:
        """Read at once."""
        self._answers.append(self._reader.read(order))

    def poll(self) -> list[ReadAnswer]:
        """What has been read since."""
        answers, self._answers = self._answers, []
        return answers

    def drop(self, number: int) -> None:
        """Nothing is ever under way."""

    def rows_read(self, number: int) -> int | None:
        """Nothing is ever under way."""
        return None

    def close(self) -> None:
        """There is no process to end."""


def play(store: Store, policy: Policy | str = "aspen", **options: Any) -> Outcome:
    """Run to the end."""
    with owned(store.folder):
        return service(store, policy, **options).play()


def curves(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Training records of every job, without what depends on the clock."""
    return {
        row["job_id"]: [{k: v for k, v in r.items() if k != "t_s"} for r in store.records(row["job_id"])]
        for row in store.jobs()
    }


def first(whole: dict[str, Any], n: int) -> dict[str, Any]:
    """Curves of the first `n` jobs.

    Those that `jobs(folder, n)` makes, which others beside them do not change.
    """
    return {job_id: whole[job_id] for job_id in sorted(whole)[:n]}


def kill_plan(point: str, stage: str | None, count: int) -> FaultPlan:
    """SIGKILL at the count-th time that a point (and stage) is reached."""
    left = [count]

    def fault(_: str, facts: dict[str, object]) -> None:
        if stage is None or facts.get("stage") == stage:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return FaultPlan(**{point: fault})


def poison(job_id: str, act: Callable[[], object]) -> FaultPlan:
    """Every step with that job does this to the process."""

    def fault(_: str, facts: dict[str, object]) -> None:
        names = facts["job_ids"]
        assert isinstance(names, tuple)
        if job_id in names:
            act()

    return FaultPlan(step=fault)


def die() -> None:
    """As a segmentation fault would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Eager(Policy):
    """Starts whatever fits, in its order."""

    def place(self, view: ClusterView) -> Plan:
        plan = view.plan()
        for job in view.waiting(view.n_waiting):
            plan.start_first(job.job_id)
        return plan


class Sleepy(Policy):
    """Never answers."""

    name = "sleepy"

    def place(self, view: ClusterView) -> Plan:
        time.sleep(600)
        return view.plan()


class Deadly(Policy):
    """Ends its process."""

    name = "deadly"

    def place(self, view: ClusterView) -> Plan:
        os._exit(1)


def _serve(order: dict[str, Any]) -> int:
    """One process of a scheduler, as the zygote's child."""
    state = Path(order["state"])
    plan = kill_plan(*order["kill"]) if order.get("kill") else NONE
    if order.get("poison"):
        plan = poison(order["poison"], die)
    if order.get("hang"):
        plan = poison(order["hang"], lambda: time.sleep(600))
    if order.get("after_s"):
        signal.setitimer(signal.ITIMER_REAL, order["after_s"])
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    policy = Sleepy() if order.get("sleepy") else Deadly() if order.get("deadly") else order.get("policy", "aspen")
    play(Store(state), policy, faults=plan)
    return 0


def _zygote() -> None:
    """Forks a scheduler for each order, a line each, and says how it ended.

    Torch is loaded once.
    """
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _serve(json.loads(line))
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
            finally:
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_serve(json.loads(sys.argv[1])))
    _zygote()
