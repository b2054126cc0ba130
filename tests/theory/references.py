"""Short independent reference loops: every job's turnaround, from arrival and size arrays alone.

They know nothing of loramux. Jobs come in (submit, id) order; equal keys go to the earlier arrival,
then the smaller index. At one instant completions come first, then all arrivals of that instant,
then the choice of who runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush, heapreplace
from math import inf, nan

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Input = Array | Sequence[float]
Curve = Callable[[int], float]


def _floats(values: Input) -> list[float]:
    return [float(value) for value in values]


def lindley(arrival_s: Input, size_s: Input) -> Array:
    """First come first served on one server.

    A job's wait is what is left of the wait and the size before it.
    """
    arrival, size = _floats(arrival_s), _floats(size_s)
    out = np.empty(len(arrival))
    wait = 0.0
    for i in range(len(arrival)):
        if i:
            wait = max(0.0, wait + size[i - 1] - (arrival[i] - arrival[i - 1]))
        out[i] = wait + size[i]
    return out


def fcfs(arrival_s: Input, size_s: Input, servers: int = 1) -> Array:
    """First come first served on c servers (Kiefer-Wolfowitz).

    Each job takes the server that is free first.
    """
    arrival, size = _floats(arrival_s), _floats(size_s)
    out = np.empty(len(arrival))
    free = [0.0] * servers
    for i in range(len(arrival)):
        finish = max(arrival[i], free[0]) + size[i]
        heapreplace(free, finish)
        out[i] = finish - arrival[i]
    return out


def sjf(arrival_s: Input, size_s: Input, servers: int = 1) -> Array:
    """Non-preemptive shortest job first on c servers.

    Whenever a server is free, the shortest job that waits starts.
    """
    arrival, size = _floats(arrival_s), _floats(size_s)
    n = len(arrival)
    out = np.empty(n)
    free = [0.0] * servers
    waiting: list[tuple[float, int]] = []
    now, upcoming = 0.0, 0
    for _ in range(n):
        now = max(now, heappop(free))
        if not waiting:
            now = max(now, arrival[upcoming])
        while upcoming < n and arrival[upcoming] <= now:
            heappush(waiting, (size[upcoming], upcoming))
            upcoming += 1
        _, i = heappop(waiting)
        heappush(free, now + size[i])
        out[i] = now + size[i] - arrival[i]
    return out


def psjf(arrival_s: Input, size_s: Input) -> Array:
    """Preemptive shortest job first on one server: the smallest ORIGINAL size runs."""
    arrival, size = _floats(arrival_s), _floats(size_s)
    n = len(arrival)
    out = np.empty(n)
    left = list(size)
    present: list[tuple[float, int]] = []
    now = 0.0
    for upcoming in range(n + 1):
        until = arrival[upcoming] if upcoming < n else inf
        while present and now < until:
            i = present[0][1]
            if left[i] <= until - now:
                now += left[i]
                out[i] = now - arrival[i]
                heappop(present)
            else:
                left[i] -= until - now
                now = until
        now = until
        if upcoming < n:
            heappush(present, (size[upcoming], upcoming))
    return out


def srpt(arrival_s: Input, size_s: Input, servers: int = 1) -> Array:
    """Shortest remaining processing time.

    At every moment the c jobs with the least left run, free to change server.
    """
    arrival, size = _floats(arrival_s), _floats(size_s)
    n = len(arrival)
    out = np.empty(n)
    waiting: list[tuple[float, int]] = []
    # at most c, sorted; all lose the same, so the order lasts
    running: list[tuple[float, int]] = []
    now, upcoming = 0.0, 0
    while upcoming < n or running:
        next_arrival = arrival[upcoming] if upcoming < n else inf
        if running and running[0][0] <= next_arrival - now:
            step = running[0][0]
            now += step
        else:
            step = next_arrival - now
            now = next_arrival
        for left, i in running:
            if left <= step:
                out[i] = now - arrival[i]
        running = [(left - step, i) for left, i in running if left > step]
        while upcoming < n and arrival[upcoming] <= now:
            heappush(waiting, (size[upcoming], upcoming))
            upcoming += 1
        while waiting and (len(running) < servers or waiting[0] < running[-1]):
            if len(running) == servers:
                heappush(waiting, running.pop())
            running.append(heappop(waiting))
            running.sort()
    return out


def shared(arrival_s: Input, size_s: Input, curve: Curve) -> Array:
    """Every job runs from its arrival on; n of them share the aggregate rate curve(n) equally."""
    arrival, size = _floats(arrival_s), _floats(size_s)
    n = len(arrival)
    out = np.empty(n)
    present: list[tuple[float, int]] = []  # (service per job at which it ends, index)
    now, served = 0.0, 0.0
    for upcoming in range(n + 1):
        until = arrival[upcoming] if upcoming < n else inf
        while present:
            each = curve(len(present)) / len(present)
            end, i = present[0]
            if (end - served) / each > until - now:
                served += (until - now) * each
                break
            now += (end - served) / each
            served = end
            out[i] = now - arrival[i]
            heappop(present)
        if not present:
            served = 0.0
        now = until
        if upcoming < n:
            heappush(present, (served + size[upcoming], upcoming))
    return out


def ps(arrival_s: Input, size_s: Input) -> Array:
    """Processor sharing: n jobs run at 1/n each."""
    return shared(arrival_s, size_s, lambda n: 1.0)


def linear_curve(slope: float, cap: float) -> Curve:
    """phi(n) = min(1 + slope (n - 1), cap)."""
    return lambda n: min(1.0 + slope * (n - 1), cap)


def las(arrival_s: Input, size_s: Input) -> Array:
    """Least attained service (foreground-background), exact.

    All jobs of the lowest attained level share equally.

    Jobs of one level form a group. A stack holds the groups, the lowest level on top; the top group
    rises until one of its jobs ends, it reaches the group below and joins it, or a new job arrives
    at level 0.

    In floats. Where sizes and arrivals lie on a lattice, a group may reach the one below, or end a
    job, at the very time of an arrival, and rounding decides which came first; a job's turnaround
    may then differ by its last share of a tie from that of another exact implementation. Sizes
    drawn from a density never meet so.
    """
    arrival, size = _floats(arrival_s), _floats(size_s)
    n = len(arrival)
    out = np.empty(n)
    levels: list[float] = []
    groups: list[list[tuple[float, int]]] = []  # heaps of (size, index)
    now = 0.0
    for upcoming in range(n + 1):
        until = arrival[upcoming] if upcoming < n else inf
        while groups:
            group = groups[-1]
            above = levels[-2] if len(levels) > 1 else inf
            target = min(group[0][0], above)
            if (target - levels[-1]) * len(group) > until - now:
                levels[-1] += (until - now) / len(group)
                break
            now += (target - levels[-1]) * len(group)
            levels[-1] = target
            while group and group[0][0] <= target:
                _, i = heappop(group)
                out[i] = now - arrival[i]
            if not group:
                groups.pop()
                levels.pop()
            elif target == above:
                small, large = sorted((groups.pop(), groups.pop()), key=len)
                for member in small:
                    heappush(large, member)
                levels.pop()
                groups.append(large)
        now = until
        if upcoming < n:
            if levels and levels[-1] == 0.0:
                heappush(groups[-1], (size[upcoming], upcoming))
            else:
                levels.append(0.0)
                groups.append([(size[upcoming], upcoming)])
    return out


def loss(arrival_s: Input, size_s: Input, need: Sequence[int] | NDArray[np.int64], capacity: int) -> Array:
    """A job whose bytes fit now runs at once at unit rate; any other is lost (nan)."""
    arrival, size = _floats(arrival_s), _floats(size_s)
    needs = [int(value) for value in need]
    out = np.empty(len(arrival))
    leaving: list[tuple[float, int]] = []
    free = capacity
    for i in range(len(arrival)):
        while leaving and leaving[0][0] <= arrival[i]:
            free += heappop(leaving)[1]
        if needs[i] <= free:
            free -= needs[i]
            heappush(leaving, (arrival[i] + size[i], needs[i]))
            out[i] = size[i]
        else:
            out[i] = nan
    return out
