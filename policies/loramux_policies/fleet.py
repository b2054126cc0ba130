"""All devices with an index by free memory; copied on write, so that a plan is a cheap what-if.

The index is a necessary filter only: padded memory is not additive (one long job raises everyone's), so the ledger
decides.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final

from loramux_policies.job import Job
from loramux_policies.ledger import Ledger
from loramux_policies.views import Rule
from loramux_profiles.work import JobCost

CHANGES_KEPT: Final = 100_000


class Fleet:
    """Ledgers by device id. `fork()` shares everything until either side writes.

    A job class that no device had room for is looked for again only on the devices that have changed since: the blocked
    head of a long queue costs one or two looks per event instead of one per device (64 devices: 3,300 -> 350 ns a
    decision).
    """

    __slots__ = ("_changed", "_index", "_ledgers", "_owned", "_parent", "_refused", "touched")

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._ledgers = list(ledgers)
        self._index: list[tuple[float, int]] = []
        for ledger in ledgers:
            self._enter(ledger)
        self._owned = True
        self.touched: set[int] | None = None
        """Devices a fork has copied before writing; None: written in place."""
        self._changed: list[int] = []
        """Devices in the order they changed."""
        self._refused: dict[tuple[JobCost | None, ...], int] = {}
        """Job class -> length of `_changed` when no device had room for it."""
        self._parent: Fleet | None = None

    def fork(self) -> Fleet:
        """A fleet that starts equal to this one; this one must not be written while the fork lives."""
        twin = Fleet.__new__(Fleet)
        twin._ledgers, twin._index = self._ledgers, self._index
        twin._owned = False
        twin.touched = set()
        twin._parent = self
        twin._changed, twin._refused = self._changed, self._refused
        return twin

    def __len__(self) -> int:
        return len(self._ledgers)

    def __getitem__(self, device_id: int) -> Ledger:
        return self._ledgers[device_id]

    def __iter__(self) -> Iterator[Ledger]:
        return iter(self._ledgers)

    def add(self, job: Job, device_id: int, share: float) -> None:
        """Count the job in on a device."""
        ledger = self._write(device_id)
        ledger.add(job, share)
        self._enter(ledger)

    def remove(self, job: Job, device_id: int, share: float) -> None:
        """Count the job out of a device."""
        ledger = self._write(device_id)
        ledger.remove(job, share)
        self._enter(ledger)

    def set_share(self, device_id: int, change: float) -> None:
        """Change the seats in use on a device by `change`."""
        ledger = self._write(device_id)
        ledger.seats += change
        self._enter(ledger)

    def _write(self, device_id: int) -> Ledger:
        if not self._owned:
            self._ledgers, self._index, self._owned = self._ledgers.copy(), self._index.copy(), True
            # what a fork learns is true of it alone until it is adopted, so it learns into nothing of its parent's
            self._changed, self._refused = [], {}
        self._changed.append(device_id)
        if self.touched is not None and device_id not in self.touched:
            self._ledgers[device_id] = self._ledgers[device_id].copy()
            self.touched.add(device_id)
        ledger = self._ledgers[device_id]
        del self._index[bisect_left(self._index, (ledger.indexed, device_id))]
        return ledger

    def _enter(self, ledger: Ledger) -> None:
        ledger.indexed = ledger.index_key
        insort(self._index, (ledger.indexed, ledger.device_id))

    def adopt(self, fork: Fleet) -> None:
        """Become what the fork is."""
        self._ledgers, self._index = fork._ledgers, fork._index
        if fork._changed is not self._changed:
            before = len(self._changed)
            self._changed.extend(fork._changed)
            for job_class, length in fork._refused.items():
                self._refused[job_class] = before + length
        if len(self._changed) > CHANGES_KEPT:
            self._changed.clear()
            self._refused.clear()

    def candidates(self, job: Job, rule: Rule, share: float = 1.0) -> Iterator[int]:
        """Devices with room for one share of the job, by the rule.

        best-fit: least free memory first; worst-fit: most free first; first-fit: lowest id first; least-loaded: fewest
        seats taken first, then where the job's base already is, then most free memory.
        """
        found = self._possible(job, share)
        if found is None:
            return
        if rule == "worst-fit":
            found.sort(key=lambda item: (-item[0], item[1]))
        elif rule == "first-fit":
            found.sort(key=lambda item: item[1])
        elif rule == "least-loaded":
            self._least_loaded(found, job)
        elif rule != "best-fit":
            raise ValueError(f"unknown rule {rule!r}; known: best-fit, worst-fit, first-fit, least-loaded")
        refused = share == 1.0
        ledgers, costs = self._ledgers, job.costs
        for _, device_id in found:
            ledger = ledgers[device_id]
            cost = costs[ledger.type_index]
            if cost is not None and ledger.has_room(cost, share):
                refused = False
                yield device_id
        if refused:
            self._refused[costs] = len(self._changed)

    def first(self, job: Job, rule: Rule) -> int | None:
        """The first of `candidates`, without putting the others in order (half the time where the fleet is full)."""
        costs, changed = job.costs, self._changed
        since = self._refused.get(costs)
        if since is None:
            recent = self._recent(costs)
        elif since == len(changed):
            return None
        else:
            recent = changed[since:] if len(changed) - since <= len(self._ledgers) else None
        if recent is not None:  # a class refused before: most of a window of waiting jobs, at every decision
            ledgers, need = self._ledgers, job.need_min
            room = []
            for device_id in set(recent) if len(recent) > 1 else recent:
                ledger = ledgers[device_id]
                if ledger.indexed >= need:
                    cost = costs[ledger.type_index]
                    if cost is not None and ledger.has_room(cost):
                        room.append(device_id)
            if not room:
                self._refused[costs] = len(self._changed)
                return None
            if len(room) == 1:
                return room[0]
        if rule != "least-loaded":
            return next(self.candidates(job, rule), None)
        found = self._possible(job, 1.0)
        return None if found is None else self._least_loaded_of(found, costs)

    def _least_loaded_of(self, found: list[tuple[float, int]], costs: tuple[JobCost | None, ...]) -> int | None:
        ledgers, base = self._ledgers, _base_key(costs)
        best: tuple[float, bool, float, int] | None = None
        for key, device_id in found:
            ledger = ledgers[device_id]
            if best is not None and ledger.seats > best[0]:
                continue
            load = (ledger.seats, base not in ledger.groups, -key, device_id)
            if best is None or load < best:
                cost = costs[ledger.type_index]
                if cost is not None and ledger.has_room(cost):
                    best = load
        if best is None:
            self._refused[costs] = len(self._changed)
            return None
        return best[3]

    def _possible(self, job: Job, share: float) -> list[tuple[float, int]] | None:
        """Index entries of the devices worth asking, least free first; None where nothing was looked at."""
        index = self._index
        if not index or index[-1][0] < job.need_min:
            return None
        found = self._worth_a_look(job) if share == 1.0 else None
        if found is None:
            found = index[bisect_left(index, (job.need_min, -1)) :]
        costs = job.costs
        if len(costs) > 1 or len(found) < 2:
            return found
        # one device type: nine of ten devices of a full fleet are ruled out without a call
        cost = costs[0]
        assert cost is not None
        ledgers, own, key = self._ledgers, cost.own_bytes, cost.base.key
        with_base = own if cost.overridden else own + cost.base.weights_bytes
        possible = []
        for item in found:
            ledger = ledgers[item[1]]
            room = ledger.capacity - ledger.used
            if with_base <= room or (own <= room and key in ledger.groups):
                possible.append(item)
        return possible

    def still_refuses(self, job: Job) -> bool:
        """Whether no device had room for the job's class and none has changed since."""
        return self._refused.get(job.costs) == len(self._changed)

    def _worth_a_look(self, job: Job) -> list[tuple[float, int]] | None:
        """Index entries of the devices that changed since this job's class was refused everywhere.

        None: it never was, or so long ago that the whole index is the shorter list.
        """
        recent = self._recent(job.costs)
        if recent is None:
            return None
        ledgers, need = self._ledgers, job.need_min
        return sorted([(ledgers[d].indexed, d) for d in set(recent) if ledgers[d].indexed >= need])

    def _recent(self, costs: tuple[JobCost | None, ...]) -> list[int] | None:
        """The devices that changed since the class was refused everywhere, with repetitions; None as above."""
        changed, most = self._changed, len(self._ledgers)
        since = self._refused.get(costs)
        if since is not None:
            return None if len(changed) - since > most else changed[since:]
        parent = self._parent
        if parent is None or changed is parent._changed:
            return None
        start = parent._refused.get(costs)  # a fork that has been written
        if start is None or len(parent._changed) - start + len(changed) > most:
            return None
        return parent._changed[start:] + changed

    def _least_loaded(self, found: list[tuple[float, int]], job: Job) -> None:
        if len(found) < 2:
            return
        ledgers, base = self._ledgers, _base_key(job.costs)

        def load(item: tuple[float, int]) -> tuple[float, bool, float, int]:
            ledger = ledgers[item[1]]
            return (ledger.seats, base not in ledger.groups, -item[0], item[1])

        found.sort(key=load)

    def gang(self, job: Job, device_id: int, rule: Rule = "best-fit") -> tuple[int, ...] | None:
        """Devices for a job that wants several of one type, the given one first; None where there are not enough."""
        if job.spec.num_gpus == 1:
            return (device_id,)
        type_index = self._ledgers[device_id].type_index
        others = [d for d in self.candidates(job, rule) if d != device_id and self._ledgers[d].type_index == type_index]
        if len(others) < job.spec.num_gpus - 1:
            return None
        return (device_id, *others[: job.spec.num_gpus - 1])


def _base_key(costs: Sequence[JobCost | None]) -> str:
    cost = costs[0] or next(cost for cost in costs if cost is not None)
    return cost.base.key
