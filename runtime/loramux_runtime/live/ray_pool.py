"""A pool whose workers are Ray actors, one per device, on this host or on the nodes of a Ray cluster.

Ray is imported here and only here. It reserves whole devices; what memory the jobs on them may use is admitted by the
scheduler. Ray's own security is that of its network: a cluster that is started here listens on the loopback interface
only, asks for a token that nobody else knows, and has no dashboard and no usage statistics. One that is joined is as
its owner made it; it must ask for a token too.
"""

from __future__ import annotations

import importlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from loramux_runtime.live.pool import WorkerDied
from loramux_runtime.live.worker import DeviceWorker, StepReport, Whereabouts
from loramux_traces.errors import HardwareMissingError, StateError, UsageError

START_S: Final = 600.0
"""Most time that the first workers may take to come up (a base of tens of gigabytes is read)."""
OBJECT_STORE_BYTES: Final = 256 << 20
"""Of a cluster that is started here: states of jobs pass through it one at a time, larger ones by way of the disk."""
_AUTH: Final = "RAY_AUTH_MODE"


def load_ray(address: str | None = None) -> Any:
    """The module, set to start a cluster of its own or to join one at `address`.

    UsageError where ray is not installed or the cluster asks for no token; StateError where ray was imported before,
    for it reads its settings then.
    """
    asks = os.environ.get(_AUTH) == "token"
    if address is not None and not asks:
        raise UsageError(
            f"a Ray cluster that asks for no token runs anybody's code: set {_AUTH}=token on every node and here"
        )
    if "ray" in sys.modules and not asks:
        raise StateError("ray has been imported already, without a token to ask for")
    if address is None:
        os.environ[_AUTH] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # see `_check_loopback`
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("this needs ray: pip install 'loramux[ray]'") from error


class RayActor:
    """What runs in an actor's process."""

    def __init__(self, base: Mapping[str, Any], device: str, threads: int | None, recompute: bool) -> None:
        self._worker = DeviceWorker.open(base, device, threads, recompute=recompute)

    def call(self, name: str, *arguments: Any) -> Any:
        """A method of `DeviceWorker`."""
        return getattr(self._worker, name)(*arguments)


class RayPool:
    """`base`: of `jobs_file.BaseConfig`, as JSON. `address`: of a running cluster; None: one of its own on this host.

    `size` None: a worker for every GPU of the cluster, or one where it has none. UsageError, HardwareMissingError or
    StateError where they cannot be had.
    """

    def __init__(
        self,
        base: Mapping[str, Any],
        size: int | None = None,
        *,
        device: str = "auto",
        address: str | None = None,
        threads: int | None = None,
        recompute: bool = False,
    ) -> None:
        self._ray = load_ray(address)
        self._folder: str | None = None
        self._open(address, size)
        total = self._ray.cluster_resources()
        gpus = 0 if device == "cpu" else int(total.get("GPU", 0))
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--engine ray gives each worker a device of its own: auto, cpu or cuda, not {device!r}")
        self._kind = "cuda" if gpus else "cpu"
        self._size = size or gpus or 1
        there = gpus or int(total.get("CPU", 0))
        if self._size > there or (device == "cuda" and not gpus):
            self.close()
            raise HardwareMissingError(
                f"{self._size} devices ({device}) are asked for, Ray has {gpus} GPUs and {total.get('CPU', 0):.0f} CPUs"
            )
        # the actor's own process sees its one GPU as cuda:0
        self._arguments = (dict(base), self._kind, threads, recompute)
        # max_restarts 0: an actor that Ray starts again has lost its jobs without anybody knowing
        self._actor = self._ray.remote(RayActor).options(
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=0, max_task_retries=0
        )
        self._actors = [self._actor.remote(*self._arguments) for _ in range(self._size)]
        self._told: list[list[Any]] = [[] for _ in range(self._size)]
        """Answers that nobody has looked at yet: errors may be among them."""
        self._steps: dict[int, Any] = {}
        self._coming: dict[int, Any] = {}
        self.started: list[Whereabouts] = self._all_up()

    def _open(self, address: str | None, size: int | None) -> None:
        ray = self._ray
        if ray.is_initialized():
            raise StateError("this process has Ray open already")
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
        if address is None:
            _check_loopback(ray)
            # sockets lie in it, and their paths must not be longer than 107 characters
            self._folder = tempfile.mkdtemp(prefix="loramux-ray-", dir="/tmp" if os.path.isdir("/tmp") else None)
            options |= {"_temp_dir": self._folder, "object_store_memory": OBJECT_STORE_BYTES}
            if size is not None:
                options["num_cpus"] = max(size, os.cpu_count() or 1)  # CPU actors stand in for devices
            address = "local"
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            self.close()
            raise StateError(f"Ray cannot be started or joined: {error}") from error

    def _all_up(self) -> list[Whereabouts]:
        exceptions = self._ray.exceptions
        try:
            found: list[Whereabouts] = self._ray.get([a.call.remote("about") for a in self._actors], timeout=START_S)
        except exceptions.GetTimeoutError as error:
            self.close()
            raise HardwareMissingError(f"Ray has not started {self._size} workers within {START_S:.0f} s") from error
        except exceptions.RayActorError as error:
            self.close()
            raise StateError(f"a worker cannot be started: {_cause(error)}") from error
        return found

    @property
    def size(self) -> int:
        """Number of workers."""
        return self._size

    @property
    def device(self) -> str:
        """What their devices are."""
        names = sorted({about.device for about in self.started})
        nodes = len({about.node for about in self.started})
        return f"{self._size} x {' or '.join(names)} on {nodes} node{'s' if nodes > 1 else ''}"

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Send it, and look at the answer with the next step's."""
        self._told[worker].append(self._actors[worker].call.remote(call, *arguments))

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Wait for the answer."""
        try:
            self._check_told(worker)
            return self._ray.get(self._actors[worker].call.remote(call, *arguments))
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDied(_cause(error)) from error

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Send the step behind whatever was told before it."""
        self._steps[worker] = self._actors[worker].call.remote("step", list(entries))

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """The first to end; of several that have, the first to have been launched."""
        flying = {ref: worker for worker, ref in self._steps.items() if worker in workers}
        ready, _ = self._ray.wait(list(flying), num_returns=1, timeout=timeout_s)
        if not ready:
            return None
        worker = flying[ready[0]]
        del self._steps[worker]
        try:
            self._check_told(worker)
            return worker, self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError as error:
            return worker, WorkerDied(_cause(error))

    def _check_told(self, worker: int) -> None:
        """Raise what went wrong in what was told; answers come in order, so there is nothing to wait for long."""
        told, self._told[worker] = self._told[worker], []
        if told:
            self._ray.get(told)

    def restart(self, worker: int) -> None:
        """Kill what is left of it and ask Ray for another; on another node, if there is room on none else."""
        self._ray.kill(self._actors[worker], no_restart=True)
        self._steps.pop(worker, None)
        self._told[worker] = []
        self._actors[worker] = self._actor.remote(*self._arguments)
        self._coming[worker] = self._actors[worker].call.remote("about")

    def ready(self, worker: int) -> Whereabouts | None:
        """Where it is, once it has said so."""
        ref = self._coming.get(worker)
        if ref is None:
            return self.started[worker]
        ready, _ = self._ray.wait([ref], timeout=0)
        if not ready:
            return None
        del self._coming[worker]
        try:
            self.started[worker] = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDied(_cause(error)) from error
        return self.started[worker]

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._ray.shutdown()
        if self._folder is not None:
            _remove(self._folder)


def _check_loopback(ray: Any) -> None:
    """StateError unless a cluster that is started by this process will listen on the loopback interface only.

    Ray looks up the host's own address even where it is told 127.0.0.1, except where it supports no clusters but that
    of one host, which a variable says (seen in 2.60). `ray.util.get_node_ip_address` is what its servers bind to.
    """
    found = ray.util.get_node_ip_address()
    if found not in ("127.0.0.1", "::1"):
        raise StateError(f"this ray ({ray.__version__}) would listen on {found}, not on the loopback interface only")


def _remove(folder: str) -> None:
    """Ray's processes write logs until they are gone."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _cause(error: Exception) -> str:
    """The first line or two of what Ray says, without its identifiers."""
    lines = [line.strip() for line in str(error).splitlines()]
    wanted = [line for line in lines if line and not line.startswith(("class_name", "actor_id", "namespace", "ip:"))]
    return "; ".join(wanted[:3])[:400]
