"""Predict the length and the early end of jobs, with seeded errors.

There is one draw per job and purpose, the same under every policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import exp, hypot
from statistics import NormalDist
from typing import Final

from loramux_policies.loop.job import Job
from loramux_profiles.streams import uniform
from loramux_simulator.options import SimOptions
from loramux_traces.job import JobSpec

EARLY_STOP_SIGMA: Final = 0.3
"""Assumed: an early end read off a fitted loss curve is right within 35% in two cases of three."""


class Predictions:
    """A Predictions object makes the predictions of one run.

    `oracle`: the policy of the run may see where jobs stop.
    """

    def __init__(self, specs: Sequence[JobSpec], options: SimOptions, *, oracle: bool) -> None:
        self._specs = specs
        self._seed, self._error = options.seed, options.prediction_error
        self._sigma = 0.0 if oracle else hypot(EARLY_STOP_SIGMA, options.prediction_error)

    def _draw(self, job_id: str, purpose: str) -> float:
        return NormalDist().inv_cdf(uniform(self._seed, job_id, purpose))

    def steps(self, spec: JobSpec, declared: float) -> float:
        """Return the predicted steps: the declared ones times a lognormal factor."""
        return declared * exp(self._error * self._draw(spec.job_id, "prediction"))

    @cached_property
    def _some_stop(self) -> bool:
        return any(spec.stop_step is not None for spec in self._specs)

    def end_steps(self, job: Job) -> float | None:
        """Return the optimizer steps after which early-stop prediction expects the job's end.

        None where no job stops early. The prediction is blurred around the true end, and for jobs
        that do not stop early too: neither where a job stops nor whether it does can be told from
        it.
        """
        if not self._some_stop:
            return None
        return job.true_steps * exp(self._sigma * self._draw(job.job_id, "early stop"))
