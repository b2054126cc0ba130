"""Say what a seed of the simulator draws anew, and what stays the same whatever the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loramux_policies import Policy
from loramux_profiles.cost import CostModel
from loramux_simulator.options import SimOptions
from loramux_traces.job import JobSpec

LENGTHS: Final = "the lengths of the rows in every fused step"
ROLLED_LENGTHS: Final = "the lengths of the rows in roll-outs of fuse()"
MEMORY: Final = "by how much memory differs from its prediction"
PREDICTED: Final = "the errors of predicted job lengths"
STOPS: Final = "the errors of early-stop predictions"
SAME_JOBS: Final = "the jobs, their arrivals and their sizes"
"""What no seed changes on a trace that was read."""


def seed_redraws(
    specs: Sequence[JobSpec], policy: Policy, models: Sequence[CostModel], options: SimOptions
) -> tuple[str, ...]:
    """Return what another seed would draw anew in a run of these jobs; empty where nothing.

    The draws are those of `micro_batches`, `rollout`, `predictions` and `SimulatedRun`'s errors of
    memory. The jobs of a trace that is generated anew for each seed are not the run's draw.
    """
    found = []
    chooses = policy.max_fused is not None or type(policy).fuse is not Policy.fuse
    drawn = LENGTHS if options.fidelity == "step" else ROLLED_LENGTHS if chooses else ""
    if drawn and any(cost.lengths.shortest < cost.lengths.longest for cost in map(models[0].job_cost, specs)):
        found.append(drawn)
    if not options.ideal and any(model.upper_margin > 0.0 for model in models):
        found.append(MEMORY)
    if options.prediction_error > 0.0 and not options.ideal:
        found.append(PREDICTED)
    if chooses and not policy.oracle and any(spec.stop_step is not None for spec in specs):
        found.append(STOPS)
    return tuple(found)


def redraw_sentence(redrawn: Sequence[str], *, generated: bool = False) -> str:
    """Say in one sentence what a seed changes."""
    if generated:
        return "A seed draws all jobs and their arrivals anew."
    if not redrawn:
        return f"A seed redraws nothing here: {SAME_JOBS} stay, so every seed gives the same figures."
    return f"A seed redraws {_and(redrawn)}; {SAME_JOBS} stay the same."


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
