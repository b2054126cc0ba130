"""A ledger adds up the memory and the seats of one device.

One job more or less is O(1) (O(residents) when padded). The formulas are those of
`loramux_profiles.work`; `CostModel.upper_bytes` is the slow reference they are tested against.
"""

from __future__ import annotations

from typing import Final

from loramux_policies.loop.groups import Group, PlannedGroup
from loramux_policies.loop.job import Job
from loramux_profiles.cost import CostModel
from loramux_profiles.work import JobCost

SEAT_SLACK: Final = 1e-9
"""Shares of tied jobs add up to a whole seat only to rounding."""


class Ledger:
    """A ledger knows who is on one device and how much memory they need at most.

    `used` is the upper bound, `expected` the same without the margin.
    """

    __slots__ = (
        "capacity",
        "context",
        "device_id",
        "dynamic",
        "expected",
        "groups",
        "indexed",
        "jobs",
        "own",
        "padded",
        "raised",
        "scale",
        "seats",
        "seats_max",
        "separate",
        "type_index",
        "used",
        "weights",
    )

    def __init__(
        self,
        device_id: int,
        type_index: int,
        *,
        capacity: float,
        margin: float,
        padded: bool,
        separate: bool,
        seats_max: float,
    ) -> None:
        self.device_id = device_id
        self.type_index = type_index
        self.capacity = capacity
        self.scale = 1.0 + margin
        """Upper bound of the activations over their expected value, for a job alone."""
        self.raised = 0.0
        """What out-of-memory events on this device have added to `scale`.

        It counts wherever several jobs meet.
        """
        self.padded = padded
        self.separate = separate
        self.seats_max = seats_max
        self.jobs: dict[str, Job] = {}
        """The residents by id, in order of their start."""
        self.groups: dict[str, Group] = {}
        self.seats = 0.0
        self.own = 0.0
        self.weights = 0.0
        self.context = 0.0
        self.dynamic = 0.0
        self.used = 0.0
        self.expected = 0.0
        self.indexed = 0.0
        """Key of this device in the fleet's index (`rekey`)."""

    def copy(self) -> Ledger:
        """Return an independent ledger of the same jobs (the jobs themselves are shared)."""
        twin = Ledger.__new__(Ledger)
        twin.device_id, twin.type_index = self.device_id, self.type_index
        twin.capacity, twin.scale, twin.raised = self.capacity, self.scale, self.raised
        twin.padded, twin.separate = self.padded, self.separate
        twin.seats_max, twin.seats, twin.own = self.seats_max, self.seats, self.own
        twin.weights, twin.context, twin.dynamic = self.weights, self.context, self.dynamic
        twin.used, twin.expected, twin.indexed = self.used, self.expected, self.indexed
        twin.jobs = self.jobs.copy()
        twin.groups = groups = {}
        # A comprehension would be a call of its own, which takes a fifth of this copy
        for key, group in self.groups.items():
            groups[key] = group.copy()
        return twin

    def emptied(self, seats_max: float) -> Ledger:
        """Return a ledger of the same device without residents, its bound as it is."""
        twin = Ledger(
            self.device_id,
            self.type_index,
            capacity=self.capacity,
            margin=0.0,
            padded=self.padded,
            separate=self.separate,
            seats_max=seats_max,
        )
        twin.scale, twin.raised = self.scale, self.raised
        return twin

    @property
    def free(self) -> float:
        """The bytes left by the upper bound, or -1 where no seat is left.

        So one index serves both memory and seats.
        """
        return self.capacity - self.used if self.seats_max - self.seats > SEAT_SLACK else -1.0

    def rekey(self) -> None:
        """Set the index key, an upper limit of what a newcomer may need.

        Beside the activations of another base those of a newcomer may need no further memory. So
        with several bases the present activations are added to the free bytes.
        """
        if self.seats_max - self.seats <= SEAT_SLACK:
            self.indexed = -1.0
            return
        free = self.capacity - self.used
        if len(self.groups) > 1 and free >= 0:
            free += self.dynamic * (self.scale + self.raised)
        self.indexed = free

    def factor(self, n_jobs: int) -> float:
        """Return the upper bound of the activations over their expected value.

        It depends on whether there are several residents.
        """
        return self.scale + self.raised if n_jobs > 1 else self.scale

    def used_with(self, cost: JobCost) -> float:
        """Return the upper bound in bytes with one job of this cost more."""
        if cost.overridden:
            return self.used + cost.own_bytes
        base = cost.base
        scale = self.scale + self.raised if self.jobs else self.scale
        if self.separate:
            process = base.weights_bytes + base.context_bytes + cost.alone_q * scale
            return self.used + cost.own_bytes + process
        context = self.context if self.context > base.context_bytes else base.context_bytes
        static = self.own + self.weights + cost.own_bytes + context
        group = self.groups.get(base.key)
        if self.padded:
            own = self._padded_with(group, cost)
        else:
            own = cost.alone_q if group is None else group.with_one(cost)
        if group is None:
            static += base.weights_bytes
        return static + (self.dynamic if self.dynamic > own else own) * scale

    @staticmethod
    def _padded_with(group: Group | None, cost: JobCost) -> float:
        if group is None:
            alone = Group(cost.base)
            alone.add_padded(cost, 1)
            return alone.padded_bytes(cost.length_q, alone.by_token, alone.by_square, alone.by_row)
        return group.padded_bytes(
            max(group.longest, cost.length_q),
            group.by_token + cost.rows * cost.token_bytes,
            group.by_square + cost.rows * cost.square_bytes,
            group.by_row + cost.rows * cost.row_bytes,
        )

    def has_room(self, cost: JobCost, share: float = 1.0) -> bool:
        """Return whether one more job of this cost fits memory and seats.

        Cheap necessary conditions come first: a seat, and room for what the job adds whatever the
        others' activations hide.
        """
        own, room = cost.own_bytes, self.capacity - self.used
        if own > room or self.seats + share > self.seats_max + SEAT_SLACK:
            return False
        if not cost.overridden:
            base = cost.base
            group = self.groups.get(base.key)
            if group is None and own + base.weights_bytes > room:
                return False
            # This is `used_with` without the call, because it is the most asked question of a run
            if not self.padded and not self.separate:
                context = self.context if self.context > base.context_bytes else base.context_bytes
                static = self.own + self.weights + own + context
                if group is None:
                    static += base.weights_bytes
                    need = cost.alone_q
                elif group.additive:
                    need = cost.alone_q + group.dynamic
                else:
                    need = group.with_one(cost)
                if self.dynamic > need:
                    need = self.dynamic
                return static + need * (self.scale + self.raised if self.jobs else self.scale) <= self.capacity
        return self.used_with(cost) <= self.capacity

    def add(self, job: Job, share: float) -> None:
        """Count the job in, whether or not it fits."""
        self.jobs[job.job_id] = job
        self.seats += share
        cost = job.costs[self.type_index]
        assert cost is not None, f"{job.job_id} never fits device type {self.type_index}"
        self.own += cost.own_bytes
        if not cost.overridden:
            base = cost.base
            group = self.groups.get(base.key)
            if group is None:
                group = PlannedGroup(base) if base.planned else Group(base)
                self.groups[base.key] = group
                self.weights += base.weights_bytes
            group.jobs += 1
            group.change(cost, 1)
            if cost.length_q > group.longest:
                group.longest = cost.length_q
            if self.padded:
                group.add_padded(cost, 1)
        self._total()

    def remove(self, job: Job, share: float) -> None:
        """Count the job out of this device."""
        del self.jobs[job.job_id]
        # An empty device starts from exact zeros, so rounding does not pile up over a long run
        if not self.jobs:
            self.groups.clear()
            self.seats = self.own = self.weights = self.context = self.dynamic = self.used = self.expected = 0.0
            self.rekey()
            return
        self.seats -= share
        cost = job.costs[self.type_index]
        assert cost is not None
        self.own -= cost.own_bytes
        if not cost.overridden:
            group = self.groups[cost.base.key]
            group.jobs -= 1
            group.change(cost, -1)
            if self.padded:
                group.add_padded(cost, -1)
            if group.jobs == 0:
                del self.groups[cost.base.key]
                self.weights -= cost.base.weights_bytes
            elif self.padded and cost.length_q >= group.longest:
                group.longest = max(
                    c.length_q for c in self.costs() if not c.overridden and c.base.key == cost.base.key
                )
        self._total()

    def rescale(self, scale: float) -> None:
        """Set the bound to this many times the expected dynamic bytes from now on.

        What out-of-memory events have added stays on top.
        """
        self.scale = scale
        self._total()

    def costs(self) -> list[JobCost]:
        """Return the costs of the residents on this device's type."""
        return [job.cost_on(self.type_index) for job in self.jobs.values()]

    def _total(self) -> None:
        """Add up `used`, `expected` and the index key.

        Devices are nearly always packed and of one base, so the code is written out for that case,
        without a call.
        """
        dynamic = 0.0
        if self.separate:
            static = self.own
            for group in self.groups.values():
                static += group.jobs * (group.base.weights_bytes + group.base.context_bytes)
                dynamic += group.jobs * group.base.dynamic_bytes + group.dynamic
        else:
            context = 0.0
            padded = self.padded
            for group in self.groups.values():
                base = group.base
                if base.context_bytes > context:
                    context = base.context_bytes
                if padded:
                    own = group.padded_bytes(group.longest, group.by_token, group.by_square, group.by_row)
                else:
                    own = base.dynamic_bytes + group.dynamic
                if own > dynamic:
                    dynamic = own
            self.context = context
            static = self.own + self.weights + context
        self.dynamic = dynamic
        self.expected = static + dynamic
        raised = self.scale + self.raised
        used = self.used = static + dynamic * (raised if len(self.jobs) > 1 else self.scale)
        if self.seats_max - self.seats <= SEAT_SLACK:  # `rekey`, in place
            self.indexed = -1.0
            return
        free = self.capacity - used
        if len(self.groups) > 1 and free >= 0:
            free += dynamic * raised
        self.indexed = free


def ledger_of(cost: CostModel, seats_max: float, device_id: int = 0, type_index: int = 0) -> Ledger:
    """Open the books of one device whose jobs are fused and packed."""
    return Ledger(
        device_id,
        type_index,
        capacity=float(cost.capacity_bytes),
        margin=cost.upper_margin,
        padded=False,
        separate=False,
        seats_max=seats_max,
    )
