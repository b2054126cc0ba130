"""This module runs one scheduler process.

It opens the devices, serves the state folder, and leaves a run folder. The caller holds the
folder's lock and has bound it to a base model (`state.binding`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from loramux_policies.registry import create
from loramux_profiles.devices import DeviceProfile
from loramux_runtime.jobs.jobs_file import BaseConfig
from loramux_runtime.live.deaths import RESTARTED
from loramux_runtime.live.opening import Opened, opened
from loramux_runtime.live.reading.readers import HANG_S, Readers
from loramux_runtime.live.reading.row_files import ROWS
from loramux_runtime.live.service import LiveService, Outcome, Stops
from loramux_runtime.live.settings import EngineChoice, LiveSettings
from loramux_runtime.live.state.binding import keep_profile, manifest
from loramux_runtime.live.state.job_rows import OPEN
from loramux_runtime.live.state.run_folder import write_results
from loramux_runtime.live.state.store import Store
from loramux_runtime.live.watch.base_watch import BaseWatch
from loramux_runtime.live.watch.status import MOST_FAILURES
from loramux_runtime.live.watch.watchers import memory_guard, watched
from loramux_runtime.train.signals import stop_on_signal
from loramux_traces.errors import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Holds what a scheduler process has around it, the jobs and their policy aside."""

    choose: Callable[[Opened], tuple[DeviceProfile, str]]
    """Chooses the device profile for the devices that were opened, and its name or file."""
    policy_files: Sequence[str] = ()
    """Files that the policy came from."""
    prometheus: Path | None = None
    """Text file that is kept for Prometheus."""
    tensorboard: Path | None = None
    """Folder that training curves are written into."""
    stops: Stops = stop_on_signal
    """Turns signals into a stop of the scheduler."""
    after_policy: Callable[[], None] = lambda: None
    """Called at every step boundary, after the policy has decided."""
    hang_s: float = 600.0
    """Seconds after which a worker that has not answered is taken for dead."""
    say: Callable[[str], None] = lambda text: None
    """Told how the process goes on."""
    warn: Callable[[str], None] = lambda text: None
    """Told what a user should know in any case."""


def run_scheduler(
    store: Store, base: BaseConfig, engine: EngineChoice, settings: LiveSettings, around: Surroundings
) -> Outcome:
    """Serve the folder until it is to end; the caller holds the folder's lock."""
    with (
        watched(store, around.prometheus, around.tensorboard, around.warn) as watchers,
        closing(Readers(base.path, store.folder / ROWS, hang_s=min(HANG_S, around.hang_s))) as readers,
    ):
        base_watch = BaseWatch(base.path, around.warn)
        around.say(f"loading {base.path or base.shape or 'a tiny model'}")
        with opened(engine, base, recompute=settings.recompute) as found:
            for note in found.base.notes:
                around.say(f"base: {note}")
            readers.wait_until_ready()
            profile, name = around.choose(found)
            keep_profile(store, name)
            service = LiveService(
                store,
                settings,
                create(settings.policy),
                profile,
                base=found.base,
                pool=found.pool,
                hang_s=around.hang_s,
                reading=readers,
                stops=around.stops,
                after_policy=around.after_policy,
                warn=around.warn,
                watch=None if found.pool is not None else memory_guard(found.where, profile).poll,
                base_watch=base_watch,
                on_flush=watchers.on_flush,
                on_record=watchers.on_record,
            )
            if RESTARTED not in os.environ:
                # whoever starts a scheduler wants jobs to begin
                store.set_facts(draining=False)
            store.set_facts(policy_text=settings.policy, policy_files=list(around.policy_files))
            around.say(f"ready: {settings.policy} on {found.device}; submit jobs to {store.folder}")
            outcome = service.play()
            around.say(ending(store))
            write_results(store, manifest(settings, store, profile))
    return outcome


def ending(store: Store) -> str:
    """Say what became of the jobs of the folder, and why of the latest that failed."""
    jobs = store.jobs()
    counts = Counter("still to do" if job["state"] in OPEN else job["state"] for job in jobs)
    lines = ["ended: " + (", ".join(f"{n:,} {state}" for state, n in counts.items()) or "no job")]
    failed = [job for job in jobs if job["state"].startswith(("FAILED", "REJECTED", "UNSCHED"))]
    lines += [f"  {job['job_id']}: {job['state']}: {printable(job['reason'], 200)}" for job in failed[-MOST_FAILURES:]]
    return "\n".join(lines)
