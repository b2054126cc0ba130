"""Find the rates of a policy that windows inside `fuse()`: play it for 256 steps and count.

The result is cached by what the device holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from loramux_policies.errors import let_through
from loramux_policies.loop.blame import failed
from loramux_policies.loop.job import Job
from loramux_policies.loop.ledger import Ledger
from loramux_policies.policy import Policy
from loramux_policies.said import raised
from loramux_policies.stepping.fused_device import FusedDevice
from loramux_profiles.work import JobCost
from loramux_simulator.micro_batches import ReadyRun
from loramux_simulator.paces import Rolled, place_of
from loramux_simulator.virtual_time import Run

STEPS: Final = 256
WARM_UP: Final = 32
"""Steps before counting: no job has waited yet at the start, so the first window is not typical."""
CACHE_SIZE: Final = 20_000


class RollOut:
    """A RollOut plays `fuse()` on residents of the same costs and priorities as the device's.

    `WindowPace` calls it.
    """

    def __init__(
        self,
        policy: Policy,
        ledger_of: Callable[[int], Ledger],
        seed: int,
        *,
        padded: bool,
        clock: Callable[[], float],
        stops: Callable[[Job], float | None] = lambda _: None,
    ) -> None:
        self._policy = policy
        self._ledger_of = ledger_of
        self._seed = seed
        self._padded = padded
        self._clock = clock
        """The time of the run, for messages: a roll-out itself is of no time."""
        self._stops = stops
        self._known: dict[tuple[tuple[JobCost, int, float], ...], Rolled] = {}

    def __call__(self, runs: Sequence[Run]) -> Rolled | None:
        """Return the mean step time and each run's share of the steps.

        None where the policy would leave no job out.
        """
        try:
            windows = self._policy.windows(len(runs))
        except BaseException as error:
            let_through(error)
            raise failed(self._policy, self._clock(), f"windows({len(runs)}) {raised(error)}") from error
        if not windows:
            return None
        order = sorted(range(len(runs)), key=lambda i: place_of(runs[i]))
        key = tuple((runs[i].cost, runs[i].job.spec.priority, runs[i].job.share) for i in order)
        rolled = self._known.get(key)
        if rolled is None:
            if len(self._known) >= CACHE_SIZE:
                self._known.clear()
            rolled = self._known[key] = self._play([runs[i] for i in order])
        fractions = [0.0] * len(runs)
        for position, i in enumerate(order):
            fractions[i] = rolled.fractions[position]
        return rolled._replace(fractions=tuple(fractions))

    def _play(self, runs: Sequence[Run]) -> Rolled:
        device: FusedDevice[ReadyRun] = FusedDevice(runs[0].job.devices[0], self._policy, padded=self._padded)
        device.clock = self._clock
        device.costs.ledger = self._ledger_of(device.device_id)
        players = {
            run.job.job_id: ReadyRun(run.job, run.cost, self._seed, stop_steps=self._stops(run.job)) for run in runs
        }
        for player in players.values():
            device.add(player)
        for _ in range(WARM_UP):
            device.advance(device.next_step())
        before = {job_id: player.done_micro for job_id, player in players.items()}
        seconds = real = computed = 0.0
        for _ in range(STEPS):
            step = device.next_step()
            cost = device.costs.cost(step, memory=False)
            seconds += cost.seconds
            real += cost.real_tokens
            computed += cost.computed_tokens
            device.advance(step)
        fractions = tuple((players[r.job.job_id].done_micro - before[r.job.job_id]) / STEPS for r in runs)
        return Rolled(seconds / STEPS, fractions, real / STEPS, computed / STEPS)
