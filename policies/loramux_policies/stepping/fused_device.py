"""This module keeps one device between fused steps, simulated or real.

It knows whose turn it is, what a step is predicted to cost, and what the step moves forward. It has
no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from loramux_policies.errors import LeftTheRecord, PolicyError, let_through
from loramux_policies.loop.blame import failed, few
from loramux_policies.policy import Policy
from loramux_policies.said import raised, text_of
from loramux_policies.stepping.fuse_view import FuseView
from loramux_policies.stepping.shares import Seating, phi_at, seating
from loramux_policies.stepping.step_costs import StepCosts
from loramux_policies.stepping.turns import BaseTurn, R, place
from loramux_policies.views import FusedStep


class FusedDevice(Generic[R]):
    """Keeps the residents of one device by base model; bases take turns, one a step.

    With `phi`, every resident is a process of its own: they take turns so that each gets its share
    of the time, and k of them get phi(k) of one's speed in all.
    """

    __slots__ = (
        "_next_turn",
        "_seated",
        "_seating",
        "_spent",
        "clock",
        "costs",
        "debts",
        "device_id",
        "now_s",
        "phi",
        "policy",
        "runs",
        "turns",
    )

    def __init__(
        self, device_id: int, policy: Policy, *, padded: bool, phi: Callable[[int], float] | None = None
    ) -> None:
        self.device_id = device_id
        self.policy = policy
        self.phi = phi
        self.costs: StepCosts[R] = StepCosts(device_id, padded=padded, phi=phi)
        self.now_s = 0.0
        self.clock: Callable[[], float] | None = None
        """What time it is where steps are only tried out, and `now_s` stands still."""
        self.runs = self.costs.runs
        self.turns: dict[str, BaseTurn[R]] = {}
        self._next_turn = 0
        self._seated: list[str] = []
        """Residents in the order of `_seating`."""
        self._seating: Seating | None = None
        """None where every resident has a whole seat."""
        self._spent: dict[str, float] = {}
        """Seconds that each process has had per share (fair queueing: the least goes next)."""
        self.debts: dict[str, float] = {}
        """Seconds of loading that are left for each process that loads, if it is alone.

        Loading takes turns like steps do: the other processes go on.
        """

    def add(self, run: R) -> None:
        """Add a job, which takes part from the next step on."""
        self.runs[run.job_id] = run
        self.turns.setdefault(self._turn_of(run), BaseTurn(run.cost.base)).add(run)
        if self.phi is not None:
            self._spent[run.job_id] = min(self._spent.values(), default=0.0)
        self.reseat()

    def reseat(self) -> None:
        """Seat the residents again, because they or their shares have changed."""
        self.costs.seats = sum([run.job.share for run in self.runs.values()])
        self._seating = None
        if self.phi is None and any(run.job.share < 1.0 for run in self.runs.values()):
            runs = sorted(self.runs.values(), key=place)
            self._seated = [run.job_id for run in runs]
            self._seating = seating([run.job.share for run in runs])

    def part(self, share: float) -> float:
        """Return the part of the steps that a resident of this share is in."""
        return share / min(1.0, self.costs.seats or 1.0)

    def _turn_of(self, run: R) -> str:
        return run.cost.base.key if self.phi is None else run.job_id

    def remove(self, job_id: str) -> R:
        """Remove a job, which takes no part in steps any more."""
        run = self.runs.pop(job_id)
        turn = self.turns[self._turn_of(run)]
        turn.remove(run)
        if not turn.runs:
            del self.turns[self._turn_of(run)]
        self._spent.pop(job_id, None)
        self.debts.pop(job_id, None)
        self.reseat()
        return run

    def _turn(self) -> BaseTurn[R]:
        if self.phi is not None:
            spent = self._spent
            return self.turns[min(spent, key=spent.__getitem__)]
        keys = list(self.turns)
        while True:
            round_, position = divmod(self._next_turn, len(keys))
            self._next_turn += 1
            turn = self.turns[keys[position]]
            if self._seating is None:
                return turn
            turn = turn.only({self._seated[i] for i in self._seating.at(round_)})
            if turn.runs:  # every round has at least one resident in some turn
                return turn

    def load(self) -> float | None:
        """Load the process whose turn it is, and return the seconds that it takes.

        It loads for a step's worth at most. Returns None where the process has loaded.
        """
        spent = self._spent
        if self.phi is None or not spent:
            return None
        job_id = min(spent, key=spent.__getitem__)
        debt = self.debts.get(job_id)
        if debt is None:
            return None
        run = self.runs[job_id]
        part = min(debt, run.cost.solo_step_s)
        if part < debt:
            self.debts[job_id] = debt - part
        else:
            del self.debts[job_id]
        seconds = part / phi_at(self.phi, self.costs.seats)
        spent[job_id] += seconds / run.job.share
        return seconds

    def next_step(self) -> FusedStep:
        """Ask the policy what to fuse now; PolicyError where its answer is not valid."""
        turn = self._turn()
        view = FuseView(self.costs, turn, self.now_s)
        try:
            step = self.policy.fuse(view)
        except LeftTheRecord:
            # it is not the policy's fault
            raise
        except BaseException as error:
            let_through(error)
            raise self._wrong(turn, f"{raised(error)}") from error
        finally:
            view.open = False
        if step is not None and step is turn._everyone:
            return step
        try:
            fault = self._fault(step, turn)
        except BaseException as error:
            let_through(error)
            fault = f"returned no valid FusedStep: {text_of(step, 200)}"
        if fault:
            raise self._wrong(turn, fault)
        return step

    def _wrong(self, turn: BaseTurn[R], what: str) -> PolicyError:
        """Return the error of a fuse() on this device, with what was there to be fused."""
        ready = few((run.job_id for run in turn.runs), len(turn.runs))
        ledger = self.costs.ledger
        size = "" if ledger is None else f", {ledger.used:.0f} of {ledger.capacity:.0f} bytes at most"
        where = f"on device {self.device_id} (ready for {text_of(turn.base.key, 80)}: {ready}{size})"
        hint = "device.ready has the jobs and their rows, device.fits(jobs), device.fits_rows(job, rows) what fits"
        now_s = self.now_s if self.clock is None else self.clock()
        return failed(self.policy, now_s, f"fuse() {what}, {where}", hint=hint)

    def _fault(self, step: FusedStep, turn: BaseTurn[R]) -> str:
        """Say what is wrong with the policy's answer; empty where nothing is."""
        if not isinstance(step, FusedStep) or not step.entries:
            return f"must return a FusedStep with at least one entry, not {text_of(step, 200)}"
        if step.base_model != turn.base.key:
            return f"answered for {text_of(step.base_model, 80)}, it is the turn of {turn.base.key}"
        seen: set[str] = set()
        for entry in step.entries:
            run = self.runs.get(entry.job_id)
            if run is None or run.cost.base.key != turn.base.key or entry.job_id in seen:
                return f"names {text_of(repr(entry.job_id), 80)}, twice or not resident"
            if not isinstance(entry.rows, int) or not 1 <= entry.rows <= run.rows:
                return f"gives {entry.job_id} {text_of(entry.rows, 40)} of its {run.rows} rows"
            if self._seating is not None and run not in turn.runs:
                return f"names {entry.job_id!r}, whose share leaves it out of this step"
            seen.add(entry.job_id)
        if len(seen) > 1 and not self.costs.fits_step(step):
            need, ledger = self.costs.need_bytes(step), self.costs.ledger
            have = 0.0 if ledger is None else ledger.capacity
            jobs = few((entry.job_id for entry in step.entries), len(step.entries))
            return f"over-commits device {self.device_id}: {jobs} need {need:.0f} of {have:.0f} bytes (upper bound)"
        return ""

    def advance(self, step: FusedStep) -> None:
        """Move the jobs of a step that has run forward; the others have waited one step more."""
        runs = self.runs
        if len(step.entries) != len(runs):
            for run in runs.values():
                run.waited += 1
        if self.phi is not None and step.entries:
            mover = runs[step.entries[0].job_id]
            self._spent[mover.job_id] += self.costs.cost(step, memory=False).seconds / mover.job.share
        for job_id, rows in step.entries:
            runs[job_id].advance(rows)
