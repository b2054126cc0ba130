"""Live schedulers over a pool of workers on a tiny base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loramux_policies import create
from loramux_policies.policy import Policy
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_runtime.faults import NONE, FaultPlan
from loramux_runtime.jobs_file import BaseConfig
from loramux_runtime.live.clock import LiveTimes
from loramux_runtime.live.pool import InProcessPool, WorkerPool
from loramux_runtime.live.service import LiveService, Outcome
from loramux_runtime.live.settings import LiveSettings
from loramux_runtime.live.store import Store
from loramux_runtime.live.worker import DeviceWorker
from loramux_runtime.train import open_base, outline_base
from loramux_traces.locking import owned

from .serving import CONFIG

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
