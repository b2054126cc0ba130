"""All devices with an index by free memory; copied on write, so that a plan is a cheap what-if.

The index is a necessary filter only: padded memory is not additive (one long job raises everyone's), so the ledger decides.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from loramux_policies.job import Job
from loramux_policies.ledger import Ledger
from loramux_policies.views import Rule


class Fleet:
    """Ledgers by device id. `fork()` shares everything until either side writes."""

    __slots__ = ("_index", "_ledgers", "_owned", "touched")

    def __init__(self, ledgers: Sequence[Ledger]) -> None:
        self._ledgers = list(ledgers)
        self._index: list[tuple[float, int]] = []
        for ledger in ledgers:
            self._enter(ledger)
        self._owned = True
        self.touched: set[int] | None = None
        """Devices a fork has copied before writing; None: written in place."""

    def fork(self) -> Fleet:
        """A fleet that starts equal to this one; this one must not be written while the fork lives."""
        twin = Fleet.__new__(Fleet)
        twin._ledgers, twin._index = self._ledgers, self._index
        twin._owned = False
        twin.touched = set()
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

    def candidates(self, job: Job, rule: Rule, share: float = 1.0) -> Iterator[int]:
        """Devices with room for one share of the job, by the rule.

        best-fit: least free memory first; worst-fit: most free first; first-fit: lowest id first; least-loaded: fewest
        seats taken first, then where the job's base already is, then most free memory.
        """
        index = self._index
        if not index or index[-1][0] < job.need_min:
            return
        low = bisect_left(index, (job.need_min, -1))
        if rule == "best-fit":
            found = index[low:]
        elif rule == "worst-fit":
            found = sorted(index[low:], key=lambda item: (-item[0], item[1]))
        elif rule == "first-fit":
            found = sorted(index[low:], key=lambda item: item[1])
        elif rule == "least-loaded":
            found = self._least_loaded(index[low:], job)
        else:
            raise ValueError(f"unknown rule {rule!r}; known: best-fit, worst-fit, first-fit, least-loaded")
        ledgers, costs = self._ledgers, job.costs
        for _, device_id in found:
            ledger = ledgers[device_id]
            cost = costs[ledger.type_index]
            if cost is not None and ledger.has_room(cost, share):
                yield device_id

    def _least_loaded(self, found: list[tuple[float, int]], job: Job) -> list[tuple[float, int]]:
        if len(found) < 2:
            return found
        ledgers = self._ledgers
        base = next(cost.base.key for cost in job.costs if cost is not None)

        def load(item: tuple[float, int]) -> tuple[float, bool, float, int]:
            ledger = ledgers[item[1]]
            return (ledger.seats, base not in ledger.groups, -item[0], item[1])

        return sorted(found, key=load)

    def gang(self, job: Job, device_id: int, rule: Rule = "best-fit") -> tuple[int, ...] | None:
        """Devices for a job that wants several of one type, the given one first; None where there are not enough."""
        if job.spec.num_gpus == 1:
            return (device_id,)
        type_index = self._ledgers[device_id].type_index
        others = [
            d for d in self.candidates(job, rule) if d != device_id and self._ledgers[d].type_index == type_index
        ]
        if len(others) < job.spec.num_gpus - 1:
            return None
        return (device_id, *others[: job.spec.num_gpus - 1])

