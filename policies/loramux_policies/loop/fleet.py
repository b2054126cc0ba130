"""The fleet holds all devices with an index by free memory.

It is copied on write, so that a plan is a cheap what-if. The index is a necessary filter only:
padded memory is not additive (one long job raises everyone's), so the ledger decides.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final

from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_policies.views import Rule
from loramux_profiles.work import JobCost

CHANGES_KEPT: Final = 100_000


class Fleet:
    """A fleet holds the ledgers by device id.

    A `fork()` copies a ledger when it writes to it, and the index when it is asked for.

    A job class that no device had room for is looked for again only on the devices that have given
    something back since. So the blocked head of a long queue costs one or two looks per event
    instead of one per device (64 devices: 3,300 -> 350 ns a decision). One more job never makes
    room: the weights of its base, which the next job of that base need not bring, are counted with
    it.

    Over 300 lines: index, refusals and copy-on-write are one data structure, the hottest of a run.
    """

    __slots__ = ("_freed", "_index", "_keys", "_ledgers", "_parent", "_since", "_stale", "refused", "time", "touched")

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._ledgers = list(ledgers)
        for ledger in ledgers:
            ledger.rekey()
        self._index: list[tuple[float, int]] | None = sorted([(ledger.indexed, ledger.device_id) for ledger in ledgers])
        """(key, device), brought up to date when it is read: most decisions do not need it."""
        self._keys = [ledger.indexed for ledger in ledgers]
        """The key that the index has for each device."""
        self._stale: set[int] = set()
        """Devices whose key may have changed since the index was brought up to date."""
        self.touched: set[int] | None = None
        """Devices that a fork has copied before writing; None: ledgers are written in place."""
        self._freed: list[int] = []
        """Devices in the order in which they gave something back."""
        self._since = 0
        """The time at which `_freed` begins."""
        self.time = 0
        """How many times a device has given something back; a fork counts on from its parent."""
        self.refused: dict[tuple[JobCost | None, ...], int] = {}
        """Job class -> the time at which no device had room for it."""
        self._parent: Fleet | None = None

    def fork(self) -> Fleet:
        """Return a fleet that starts equal to this one.

        This one must not be written while the fork lives.
        """
        twin = Fleet.__new__(Fleet)
        twin._ledgers = self._ledgers.copy()
        twin._index = None
        twin._stale = twin.touched = set()  # one set until the index is brought up to date
        # What a fork learns is true of the fork alone until it is adopted, so it does not write to
        # its parent's lists
        twin._freed, twin.refused = [], {}
        twin._since = twin.time = self.time
        twin._parent = self
        return twin

    def __len__(self) -> int:
        return len(self._ledgers)

    def __getitem__(self, device_id: int) -> Ledger:
        return self._ledgers[device_id]

    def __iter__(self) -> Iterator[Ledger]:
        return iter(self._ledgers)

    def add(self, job: Job, device_id: int, share: float) -> None:
        """Count the job in on a device."""
        ledger = self._ledgers[device_id]
        touched = self.touched
        if touched is not None and device_id not in touched:
            touched.add(device_id)
            ledger = self._ledgers[device_id] = ledger.copy()
        ledger.add(job, share)
        self._stale.add(device_id)

    def remove(self, job: Job, device_id: int, share: float) -> None:
        """Count the job out of a device."""
        ledger = self._ledgers[device_id]
        touched = self.touched
        if touched is not None and device_id not in touched:
            touched.add(device_id)
            ledger = self._ledgers[device_id] = ledger.copy()
        ledger.remove(job, share)
        self._stale.add(device_id)
        self._freed.append(device_id)
        self.time += 1

    def set_share(self, device_id: int, change: float) -> None:
        """Change the seats in use on a device by `change`."""
        ledger = self._ledgers[device_id]
        touched = self.touched
        if touched is not None and device_id not in touched:
            touched.add(device_id)
            ledger = self._ledgers[device_id] = ledger.copy()
        ledger.seats += change
        ledger.rekey()
        self._stale.add(device_id)
        if change < 0.0:
            self._freed.append(device_id)
            self.time += 1

    def set_capacity(self, device_id: int, capacity_bytes: float) -> None:
        """Give the device this much memory from now on (not in a fork)."""
        ledger = self._ledgers[device_id]
        ledger.capacity = capacity_bytes
        ledger.rekey()
        self._stale.add(device_id)
        self._freed.append(device_id)
        self.time += 1

    def adopt(self, fork: Fleet) -> None:
        """Take over the state of a fork, which becomes the state of this fleet."""
        self._ledgers = fork._ledgers
        if fork._index is None:
            self._stale |= fork._stale
        else:
            self._index, self._keys, self._stale = fork._index, fork._keys, fork._stale
        if fork._freed:
            self._freed += fork._freed
            self.time = fork.time
        if fork.refused:
            self.refused.update(fork.refused)
        if len(self._freed) > CHANGES_KEPT:
            self._freed.clear()
            self.refused.clear()
            self._since = self.time

    def _by_key(self) -> list[tuple[float, int]]:
        """Bring the index up to date and return it."""
        index = self._index
        if index is None:
            parent = self._parent
            assert parent is not None
            index = self._index = parent._by_key().copy()
            self._keys = parent._keys.copy()
        stale = self._stale
        if stale:
            keys, ledgers = self._keys, self._ledgers
            for device_id in stale:
                key = ledgers[device_id].indexed
                if key != keys[device_id]:
                    del index[bisect_left(index, (keys[device_id], device_id))]
                    insort(index, (key, device_id))
                    keys[device_id] = key
            self._stale = set()
        return index

    def candidates(self, job: Job, rule: Rule, share: float = 1.0) -> Iterator[int]:
        """Yield the devices with room for one share of the job, in the order of the rule.

        - best-fit: least free memory first.
        - worst-fit: most free memory first.
        - first-fit: lowest id first.
        - least-loaded: fewest seats taken first, then where the job's base already is, then most
          free memory.
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
        refused, now = share == 1.0, self.time
        ledgers, costs = self._ledgers, job.costs
        for _, device_id in found:
            ledger = ledgers[device_id]
            cost = costs[ledger.type_index]
            if cost is not None and ledger.has_room(cost, share):
                refused = False
                yield device_id
        if refused:
            self.refused[costs] = now

    def first(self, job: Job, rule: Rule) -> int | None:
        """Return the first of `candidates` without putting the others in order.

        This takes half the time where the fleet is full. Return None where there is no candidate.
        """
        costs, ledgers = job.costs, self._ledgers
        recent = self._recent(costs)
        # The class was refused before: this is so for most of a window of waiting jobs, at every
        # decision
        if recent is not None:
            room = []
            if recent:
                need = job.need_min
                for device_id in recent if len(recent) == 1 else set(recent):
                    ledger = ledgers[device_id]
                    if ledger.indexed >= need:
                        cost = costs[ledger.type_index]
                        if cost is not None and ledger.has_room(cost):
                            room.append(device_id)
            if not room:
                self.refused[costs] = self.time
                return None
            if len(room) == 1:
                return room[0]
            found = sorted([(ledgers[d].indexed, d) for d in room])
        else:
            index = self._by_key()
            found = index[bisect_left(index, (job.need_min, -1)) :]
        if rule == "least-loaded":
            return self._least_loaded_of(found, costs)
        if rule != "best-fit":
            return next(self.candidates(job, rule), None)
        for _, device_id in found:
            ledger = ledgers[device_id]
            cost = costs[ledger.type_index]
            if cost is not None and ledger.has_room(cost):
                return device_id
        if found:
            self.refused[costs] = self.time
        return None

    def _least_loaded_of(self, found: list[tuple[float, int]], costs: tuple[JobCost | None, ...]) -> int | None:
        """Return the device with room that has the fewest seats taken.

        Among equals a device that has the base comes first, then the one with most free memory. The
        search begins at most free memory, because those devices have the fewest residents: for the
        others one look at their seats is enough.
        """
        ledgers, base = self._ledgers, _base_key(costs)
        best: tuple[float, bool, float, int] | None = None
        fewest = float("inf")
        for key, device_id in reversed(found):
            ledger = ledgers[device_id]
            seats = ledger.seats
            if seats > fewest:
                continue
            load = (seats, base not in ledger.groups, -key, device_id)
            if best is None or load < best:
                cost = costs[ledger.type_index]
                if cost is not None and ledger.has_room(cost):
                    best, fewest = load, seats
        if best is not None:
            return best[3]
        if found:
            self.refused[costs] = self.time
        return None

    def _possible(self, job: Job, share: float) -> list[tuple[float, int]] | None:
        """Return the index entries of the devices worth asking, least free memory first.

        None where nothing was looked at.
        """
        index = self._by_key()
        if not index or index[-1][0] < job.need_min:
            return None
        found = self._worth_a_look(job) if share == 1.0 else None
        if found is None:
            found = index[bisect_left(index, (job.need_min, -1)) :]
        costs = job.costs
        if len(costs) > 1 or len(found) < 2:
            return found
        # With one device type, nine of ten devices of a full fleet are ruled out without a call
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
        """Return whether no device had room for the job's class and none has been freed since."""
        return self._recent(job.costs) == []

    def _worth_a_look(self, job: Job) -> list[tuple[float, int]] | None:
        """Return the index entries of the devices that may have room for a job refused before.

        They are the devices that gave something back since this job's class was refused everywhere.
        None: it never was, or so long ago that the whole index is the shorter list.
        """
        recent = self._recent(job.costs)
        if recent is None:
            return None
        ledgers, need = self._ledgers, job.need_min
        return sorted([(ledgers[d].indexed, d) for d in set(recent) if ledgers[d].indexed >= need])

    def _recent(self, costs: tuple[JobCost | None, ...]) -> list[int] | None:
        """Return the devices that gave something back since the class was refused everywhere.

        A device may stand there several times. None as in `_worth_a_look`.
        """
        at = self.refused.get(costs)
        if at is not None:
            return self._freed[at - self._since :] if self.time - at <= len(self._ledgers) else None
        parent = self._parent
        if parent is None:
            return None
        at = parent.refused.get(costs)
        if at is None or self.time - at > len(self._ledgers):
            return None
        return parent._freed[at - parent._since :] + self._freed

    def _least_loaded(self, found: list[tuple[float, int]], job: Job) -> None:
        if len(found) < 2:
            return
        ledgers, base = self._ledgers, _base_key(job.costs)

        def load(item: tuple[float, int]) -> tuple[float, bool, float, int]:
            ledger = ledgers[item[1]]
            return (ledger.seats, base not in ledger.groups, -item[0], item[1])

        found.sort(key=load)

    def gang(self, job: Job, device_id: int, rule: Rule = "best-fit") -> tuple[int, ...] | None:
        """Return devices of one type for a job that wants several, the given device first.

        None where there are not enough.
        """
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
