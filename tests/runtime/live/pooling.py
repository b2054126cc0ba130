"""Live schedulers over a pool of workers on a tiny base."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loramux_policies import create
from loramux_policies.loop.job import Job
from loramux_policies.policy import Policy
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_runtime.jobs.bases import open_base, outline_base
from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_runtime.live.drive.live_times import LiveTimes, PredictedLiveTimes
from loramux_runtime.live.drive.pool import InProcessPool, WorkerPool
from loramux_runtime.live.drive.worker import DeviceWorker
from loramux_runtime.live.reading.orders import ReadAnswer
from loramux_runtime.live.reading.row_files import ROWS
from loramux_runtime.live.service import LiveService, Outcome
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.state.job_rows import JobRow
from loramux_runtime.live.state.store import Store
from loramux_runtime.train.faults import NONE, FaultPlan
from loramux_simulator import simulate
from loramux_traces.job import JobSpec, Trace
from loramux_traces.locking import owned

from .serving import CONFIG, ReadHere, curves, jobs, submit

BASE = BaseConfig.model_validate({"config": CONFIG})


def in_process(size: int, faults: FaultPlan = NONE) -> InProcessPool:
    """Workers in this process, each with a base of its own (the same weights)."""
    return InProcessPool(size, lambda: DeviceWorker(open_base(BASE), faults=faults))


def service(
    store: Store,
    pool: WorkerPool,
    policy: Policy | str = "aspen",
    *,
    profile: DeviceProfile | None = None,
    times: LiveTimes | None = None,
    warn: Callable[[str], None] = lambda text: None,
    hang_s: float = 60.0,
    **settings: Any,
) -> LiveService:
    """A scheduler over these workers that ends when nothing is left to do."""
    values: dict[str, Any] = {"exit_when_idle": True, "checkpoint_s": 0.05, "flush_s": 0.02, **settings}
    return LiveService(
        store,
        LiveSettings(policy=policy if isinstance(policy, str) else policy.name, **values),
        create(policy) if isinstance(policy, str) else policy,
        profile or load_device("cpu"),
        base=outline_base(BASE),
        pool=pool,
        times=times,
        warn=warn,
        hang_s=hang_s,
        reading=ReadHere(store.folder / ROWS),
    )


def play(store: Store, pool: WorkerPool, policy: Policy | str = "aspen", **options: Any) -> Outcome:
    """Run to the end."""
    with owned(store.folder):
        return service(store, pool, policy, **options).play()


def events(store: Store, *names: str) -> list[dict[str, Any]]:
    """Rows of the event log of these kinds."""
    return [row for row in store.events() if row["event"] in names]


def adapters(store: Store) -> Mapping[str, str]:
    """SHA-256 of every adapter that was written."""
    found = {}
    for path in sorted(Path(store.folder, "adapters").glob("*/adapter_model.safetensors")):
        found[path.parent.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


Bits = tuple[dict[str, Any], Mapping[str, str]]
"""Training curves and adapters."""


def bits(store: Store) -> Bits:
    """What the jobs have learned."""
    return curves(store), adapters(store)


def same(store: Store, one_device: Bits) -> None:
    """Every job completed, once, with the bits that it has on one device."""
    assert {row["state"] for row in store.jobs()} == {"COMPLETED"}
    assert Counter(row["job_id"] for row in events(store, "finish")) == {row["job_id"]: 1 for row in store.jobs()}
    assert bits(store) == one_device


def check_decisions(pool: WorkerPool, policy: str, folder: Path, n: int) -> None:
    """Rows of one length and steps that take what the model says.

    As in the simulator, the same happens to the same jobs on the same devices in the same order and
    at the same time.
    """
    fast = {"disk_bandwidth": 1e14, "host_bandwidth": 1e14, "join_s": 0.0, "memory_margin": 0.0}
    known = load_device("cpu")
    values = {name: p.model_copy(update={"value": fast.get(name, p.value)}) for name, p in known.parameters.items()}
    device = known.model_copy(update={"parameters": values})
    rows = folder / "even.jsonl"
    texts = [(f"row {i} " * 9)[:30] for i in range(24)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = jobs(folder, n, data={"path": str(rows)}, micro_batch_size=4)
    arrivals = [(0.0, 0.0, 0.0, 0.0, 0.01, 0.011, 0.02, 0.03, 0.03, 0.05)[i % 10] + 0.1 * (i // 10) for i in range(n)]
    store = submit(folder / policy, found, at_s=arrivals)
    scheduler = service(
        store, pool, policy, profile=device, times=PredictedLiveTimes(), max_resident=2, checkpoint_s=1e9
    )
    specs: list[JobSpec] = []
    admit = scheduler.roster.job

    def noted(row: JobRow, answer: ReadAnswer | None) -> Job | None:
        job = admit(row, answer)
        if job is not None:
            specs.append(job.spec)
        return job

    scheduler.roster.job = noted  # type: ignore[method-assign]
    scheduler.play()
    trace = Trace(name="pool", jobs=tuple(specs))
    simulated = simulate(trace, policy, devices=[device] * pool.size, fidelity="step", max_resident=2, events=True)
    kinds = ("arrive", "start", "resume", "pause", "finish")
    theirs = [row for row in simulated.events or [] if row["event"] in kinds]
    mine = events(store, *kinds)
    assert len({tuple(row["devices"]) for row in mine if "devices" in row}) == pool.size
    assert [_decision(row) for row in mine] == [_decision(row) for row in theirs]
    for a, b in zip(theirs, mine, strict=True):
        assert abs(a["t_s"] - b["t_s"]) <= max(1e-4 * a["t_s"], 1e-5)


def _decision(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["event"], row["job_id"], tuple(row.get("devices") or ())
