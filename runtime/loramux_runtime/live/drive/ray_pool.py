"""This module holds a pool whose workers are Ray actors, one per device.

They are on this host or on the nodes of a Ray cluster. Ray reserves whole devices; what memory the
jobs on them may use is admitted by the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from loramux_runtime.live.drive.pool import WorkerDied
from loramux_runtime.live.drive.ray_cluster import RayCluster
from loramux_runtime.live.drive.worker import DeviceWorker, StepReport, Whereabouts
from loramux_traces.errors import HardwareMissingError, StateError, UsageError

START_S: Final = 600.0
"""Most time that the first workers may take to come up (a base of tens of gigabytes is read)."""


class RayActor:
    """Runs in an actor's process and passes calls on to its `DeviceWorker`."""

    def __init__(self, base: Mapping[str, Any], device: str, threads: int | None, recompute: bool) -> None:
        self._worker = DeviceWorker.open(base, device, threads, recompute=recompute)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of `DeviceWorker` by its name."""
        return getattr(self._worker, name)(*arguments)


class RayPool:
    """Runs a pool of workers that are Ray actors.

    `base`: of `jobs_file.BaseConfig`, as JSON. `size` None: a worker for every GPU of the cluster,
    or one where it has none. `device`: auto, cpu or cuda.

    Raises HardwareMissingError where there are too few devices, StateError where a worker cannot be
    started.
    """

    def __init__(
        self,
        cluster: RayCluster,
        base: Mapping[str, Any],
        size: int | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        recompute: bool = False,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"--engine ray gives each worker a device of its own: auto, cpu or cuda, not {device!r}")
        self._cluster, self._ray = cluster, cluster.ray
        total = self._ray.cluster_resources()
        gpus = 0 if device == "cpu" else int(total.get("GPU", 0))
        cpus = int(total.get("CPU", 0))
        self._size = size or gpus or 1
        if self._size > (gpus or cpus) or (device == "cuda" and not gpus):
            raise HardwareMissingError(
                f"{self._size} devices ({device}) are asked for; Ray has {gpus} GPUs and {cpus} CPUs"
            )
        self.kind = "cuda" if gpus else "cpu"
        """Kind of every device; an actor's process sees its one GPU as cuda:0."""
        self._arguments = (dict(base), self.kind, threads, recompute)
        # max_restarts 0: an actor that Ray starts again by itself has lost its jobs without anybody
        # knowing
        self._actor = self._ray.remote(RayActor).options(
            num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=0, max_task_retries=0
        )
        self._actors = [self._actor.remote(*self._arguments) for _ in range(self._size)]
        self._told: list[list[Any]] = [[] for _ in range(self._size)]
        """Answers that nobody has looked at yet; errors may be among them."""
        self._steps: dict[int, Any] = {}
        self._coming: dict[int, Any] = {}
        self.started: list[Whereabouts] = self._all_up()

    def _all_up(self) -> list[Whereabouts]:
        exceptions = self._ray.exceptions
        try:
            found: list[Whereabouts] = self._ray.get([a.call.remote("about") for a in self._actors], timeout=START_S)
        except exceptions.GetTimeoutError as error:
            raise HardwareMissingError(f"Ray has not started {self._size} workers within {START_S:.0f} s") from error
        except exceptions.RayActorError as error:
            raise StateError(f"a worker cannot be started: {_cause(error)}") from error
        return found

    @property
    def size(self) -> int:
        """Number of workers in the pool."""
        return self._size

    @property
    def device(self) -> str:
        """What the workers' devices are, for people."""
        names = sorted({about.device for about in self.started})
        nodes = len({about.node for about in self.started})
        return f"{self._size} x {' or '.join(names)} on {nodes} node{'s' if nodes > 1 else ''}"

    def tell(self, worker: int, call: str, *arguments: Any) -> None:
        """Send the call; its answer is looked at with the next step's."""
        self._told[worker].append(self._actors[worker].call.remote(call, *arguments))

    def ask(self, worker: int, call: str, *arguments: Any) -> Any:
        """Wait for the answer and return it."""
        return self.collect(self.request(worker, call, *arguments))

    def request(self, worker: int, call: str, *arguments: Any) -> Any:
        """Send the call, and return the ticket for its answer."""
        return worker, self._actors[worker].call.remote(call, *arguments)

    def collect(self, ticket: Any) -> Any:
        """Wait for the answer of a ticket and return it."""
        worker, ref = ticket
        try:
            self._check_told(worker)
            return self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerDied(_cause(error)) from error

    def launch(self, worker: int, entries: Sequence[tuple[str, int]]) -> None:
        """Send the step behind whatever was told before it."""
        self._steps[worker] = self._actors[worker].call.remote("step", list(entries))

    def wait(self, workers: Collection[int], timeout_s: float | None) -> tuple[int, StepReport | WorkerDied] | None:
        """Wait for the first step to end.

        Of several that have ended, take the first to have been launched.
        """
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
        """Raise what went wrong in what the worker was told.

        Answers come in order, so there is nothing to wait for long.
        """
        told, self._told[worker] = self._told[worker], []
        if told:
            self._ray.get(told)

    def restart(self, worker: int) -> None:
        """Kill what is left of the worker and ask Ray for another.

        The new one is on another node if only another node has room.
        """
        self._ray.kill(self._actors[worker], no_restart=True)
        self._steps.pop(worker, None)
        self._told[worker] = []
        self._actors[worker] = self._actor.remote(*self._arguments)
        self._coming[worker] = self._actors[worker].call.remote("about")

    def ready(self, worker: int) -> Whereabouts | None:
        """Return where the worker is, once it has said so; else None."""
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
        """End the actors; the cluster belongs to whoever opened it."""
        for actor in self._actors:
            self._ray.kill(actor, no_restart=True)


_EXIT: Final = re.compile(r"Worker exit type: (\w+)")
_PROCESS: Final = re.compile(r"^\s*pid: (\d+)", re.MULTILINE)


def _cause(error: Exception) -> str:
    """Reduce the half page that Ray says of a death to one line."""
    text = str(error)
    process, kind = _PROCESS.search(text), _EXIT.search(text)
    if kind is not None:
        return f"process {process[1] if process else '?'} ended ({kind[1]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
