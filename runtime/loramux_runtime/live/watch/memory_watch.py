"""This module sees whether another process takes memory of our device, or gives it back.

It says what this process may use in all, and the capacity that admission should go by.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import torch

SLACK_BYTES: Final = 256 * 2**20
STABLE_S: Final = 10.0
_NO_LIMIT: Final = 1 << 60
"""Limit from which on there is none: cgroup v1 writes "no limit" as a number above it."""


class MemoryWatch(Protocol):
    """Describes where the figure of available memory comes from."""

    def available_bytes(self) -> float | None:
        """Return what this process may use of the device in all.

        That is what it uses already, and what is free. None: not known.
        """
        ...


class FakeWatch:
    """Says what it is told to say, for tests: `watch.bytes` may be set at any time."""

    def __init__(self, available_bytes: float | None) -> None:
        self.bytes = available_bytes

    def available_bytes(self) -> float | None:
        return self.bytes


class CudaWatch:
    """Watches a CUDA device: free + reserved + context.

    - free: what the driver gives out (`torch.cuda.mem_get_info`), to whoever asks first.
    - reserved: all that torch's caching allocator has from the driver. Its cached blocks hold no
      tensor, but they are ours: the next step is served from them, and no other process can have
      them. Counted by tensors only, every cache that grows would look like another process.
    - context: what the profile says that context and libraries of one process take, since admission
      counts it as used. What it takes in truth cannot be told from other processes through torch;
      where it is more than the profile says, the difference is rightly missing here, for no
      prediction has it.

    So what is missing from the device's total is what other processes hold.
    """

    def __init__(self, device: torch.device, *, context_bytes: float = 0.0) -> None:
        self._device, self._context_bytes = device, context_bytes

    def available_bytes(self) -> float | None:
        """Return the same as MemoryWatch; None where the driver gives no answer."""
        try:
            free, _ = torch.cuda.mem_get_info(self._device)
        except RuntimeError:
            # a lost device: its next step says so better
            return None
        return float(free + torch.cuda.memory_reserved(self._device)) + self._context_bytes


class HostWatch:
    """Watches the memory of a Linux machine: what the kernel could give out, and our own.

    Where a control group (a container, a systemd slice, a batch system) sets a limit, the figure is
    at most what that leaves.

    - What the kernel could give out: MemAvailable, and the pages that lie free in its per-CPU
      lists, which MemAvailable lacks. Since Linux 6.7 such a list may grow to an eighth of the
      memory: 300 MB that were freed stayed there for seconds (seen on 6.18), and memory that we
      free ourselves would look like another's.
    - Our own: resident less shared of /proc/self/statm, that is pages of no file (file pages that
      nobody needs are in MemAvailable already). What the C library keeps of freed memory is
      resident, so ours.
    - A group's use counts the file cache; what of it has not been used lately (inactive_file) is
      taken for free, as Kubernetes does.
    """

    def __init__(self, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc, self._cgroup = proc, cgroup

    def available_bytes(self) -> float | None:
        """Return the same as MemoryWatch; None where there is no /proc."""
        try:
            own = self._own_bytes()
            free = self._free_bytes()
        except (OSError, ValueError, LookupError):
            return None
        return float(min([free + own, *(left + own for left in self._group_bytes())]))

    def _own_bytes(self) -> int:
        _, resident, shared = (self._proc / "self" / "statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

    def _free_bytes(self) -> int:
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024 + self._listed_bytes()
        raise LookupError("no MemAvailable: a kernel before 3.14")

    def _listed_bytes(self) -> int:
        """Return the free pages in the per-CPU lists of every zone, in bytes.

        It is 0 where that is hidden from us.
        """
        try:
            lines = (self._proc / "zoneinfo").read_text().splitlines()
        except OSError:
            return 0
        counts = (line.split() for line in lines if line.lstrip().startswith("count:"))
        return sum(int(count[1]) for count in counts) * os.sysconf("SC_PAGE_SIZE")

    def _group_bytes(self) -> Iterator[int]:
        """Yield what is left below the limit of our control group, and of each one above it.

        It yields nothing where none has a limit.
        """
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from self._limits(self._cgroup, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from self._limits(self._cgroup / "memory", path, *names)

    @staticmethod
    def _limits(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # our group lies outside of what this name space shows
            parts = []
        for depth in range(len(parts), -1, -1):
            folder = root.joinpath(*parts[:depth])
            try:
                most = (folder / limit).read_text().strip()
                if most == "max" or int(most) >= _NO_LIMIT:
                    continue
                used = int((folder / usage).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                # the root has no limit; a container may not show the groups above it
                continue
            yield int(most) - used + min(used, int(stat.get(reclaimable, 0)))


class CapacityGuard:
    """Turns what a watch says into a capacity, at most `capacity_bytes`, that does not flutter.

    It shrinks at once when less is available than the capacity, to `slack_bytes` below that, so
    that the next small taker changes nothing. It grows only when `slack_bytes` or more could be
    gained (or all that is missing) for `stable_s` seconds, and to what was there all that time: a
    process that frees and takes again, as every training does between steps, moves nothing. Where
    the watch knows nothing, the capacity stays as it is.
    """

    def __init__(
        self,
        watch: MemoryWatch,
        capacity_bytes: float,
        *,
        every_s: float = 1.0,
        slack_bytes: float = SLACK_BYTES,
        stable_s: float = STABLE_S,
    ) -> None:
        self.capacity_bytes = float(capacity_bytes)
        """Bytes that may be used now."""
        self._watch, self._most = watch, float(capacity_bytes)
        self._every_s, self._slack, self._stable_s = every_s, float(slack_bytes), stable_s
        self._next_s = -math.inf
        self._low = math.inf
        """The least that could be used since `_since_s`; all that time it was more than now."""
        self._since_s: float | None = None

    def poll(self, now_s: float) -> float | None:
        """Return the new capacity in bytes where it has changed, else None.

        `now_s` is of a monotonic clock; the watch is asked at most every `every_s` seconds, so that
        this may be called at every step.
        """
        if now_s < self._next_s:
            return None
        self._next_s = now_s + self._every_s
        available = self._watch.available_bytes()
        if available is None:
            self._since_s = None
            return None
        wanted = max(0.0, min(self._most, available - self._slack))
        if available < self.capacity_bytes:
            return self._change(wanted)
        if wanted < min(self._most, self.capacity_bytes + self._slack) or wanted == self.capacity_bytes:
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s, self._low = now_s, math.inf
        self._low = min(self._low, wanted)
        return self._change(self._low) if now_s - self._since_s >= self._stable_s else None

    def _change(self, capacity_bytes: float) -> float | None:
        self._since_s = None
        if capacity_bytes == self.capacity_bytes:  # it is 0 already
            return None
        self.capacity_bytes = capacity_bytes
        return capacity_bytes
