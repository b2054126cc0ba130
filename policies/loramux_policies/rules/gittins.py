"""This module holds the Gittins index policy for sizes of a known law.

Sources: Gittins 1979; Scully, Harchol-Balter and Scheller-Wolf 2018.
"""

from __future__ import annotations

from bisect import bisect_right
from math import erfc, exp, inf, log, sqrt
from typing import ClassVar

import numpy as np

from loramux_policies.policy import Policy
from loramux_policies.registry import register
from loramux_policies.rules._preempt import Worse, preempt_in_order, review_at_level
from loramux_policies.views import ClusterView, JobView, Order, Plan

EDGES_PER_DOUBLING = 2
LOWEST, HIGHEST = -8, 16
"""Ages are told apart from 2^-4 to 2^8 medians."""
SLACK = 1.0 - 1e-6


@register("gittins")
class Gittins(Policy):
    """Run the jobs with the largest Gittins index, preemptively: the best chance to end soon.

    The index takes the service so far and the law of sizes into account. At age a it is max over d
    of P(S - a <= d | S > a) / E[min(S - a, d) | S > a]. It is kept on a grid of ages (two per
    doubling), so that a job changes rank, and is reviewed, finitely often. `law`: `lognormal`
    (`shape` is sigma) or `weibull` (`shape` 1 is exponential; below 1 the index is least attained
    service). `median_s`: the median size. The default is fitted to the Philly trace (median 1,144
    s, CV^2 41). `window`: how many waiting jobs may be blocked before the rule gives up.
    """

    preempts: ClassVar[bool] = True

    def __init__(self, law: str = "lognormal", median_s: float = 1144.0, shape: float = 1.9, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, not {window}")
        self.window = window
        if law not in ("lognormal", "weibull"):
            raise ValueError(f"law must be lognormal or weibull, not {law!r}")
        if not 0.0 < median_s < inf or not 0.05 <= shape <= 20.0:
            raise ValueError(f"median_s must be above 0 and shape from 0.05 to 20, not {median_s} and {shape}")
        self.law = law
        self.median_s = median_s
        self.shape = shape
        self.edges_s = [median_s * 2.0 ** (i / EDGES_PER_DOUBLING) for i in range(LOWEST, HIGHEST + 1)]
        """Bucket b holds the ages from edge b - 1 (0 for the first) to edge b."""
        self.index = self._indices()
        self.order = Order(key=lambda job: (-self.index[self.bucket(job)],))

    def _survival(self, age_s: float) -> float:
        if age_s <= 0.0:
            return 1.0
        if self.law == "lognormal":
            return 0.5 * erfc(log(age_s / self.median_s) / (self.shape * sqrt(2.0)))
        return exp(-log(2.0) * (age_s / self.median_s) ** self.shape)

    def _indices(self) -> list[float]:
        """Return the index at the start of each bucket, per second.

        The integrals are taken by trapezoids on a geometric grid that begins there.
        """
        ahead = np.concatenate([[0.0], self.median_s * 2.0 ** np.arange(-14.0, 12.0, 1.0 / 16.0)])
        indices: list[float] = []
        for start_s in [0.0, *self.edges_s]:
            here = self._survival(start_s)
            if here <= 0.0:  # the survival is 0 here: take the index of the ages before
                indices.append(indices[-1])
                continue
            alive = np.array([self._survival(start_s + more_s) for more_s in ahead]) / here
            lived = np.cumsum(np.diff(ahead) * (alive[1:] + alive[:-1]) / 2.0)
            indices.append(float(((1.0 - alive[1:]) / lived).max()))
        return indices

    def bucket(self, job: JobView) -> int:
        """Return which ages the job is among; the slack absorbs rounding at a review."""
        return bisect_right(self.edges_s, job.attained_s / SLACK)

    def place(self, view: ClusterView) -> Plan:
        """Start jobs by index; they displace residents whose index is strictly smaller."""
        plan = view.plan()
        blocked, started = preempt_in_order(view, plan, lambda job: self._worse(view, job), window=self.window)
        edge = None if blocked is None else self._falls_below(self.index[self.bucket(blocked)])
        # come back when the next resident is old enough to be worse than the job that waits
        if edge is not None:
            review_at_level(view, plan, started, self.edges_s[edge], SLACK)
        return plan

    def _falls_below(self, index: float) -> int | None:
        """Return the edge from which on every age has a smaller index.

        Returns None if the oldest ages have not, or if all ages have.
        """
        bucket = len(self.index)
        while bucket > 0 and self.index[bucket - 1] < index:
            bucket -= 1
        return bucket - 1 if 0 < bucket < len(self.index) else None

    def _worse(self, view: ClusterView, job: JobView) -> Worse:
        mine = self.index[self.bucket(job)]

        def badness(resident: JobView) -> float:
            return -self.index[self.bucket(resident)]

        edge = self._falls_below(mine)
        from_bucket = len(self.index) if edge is None else edge + 1
        # some of the young are worse as well, so look at all residents
        if any(index < mine for index in self.index[:from_bucket]):
            everyone = view.preemptible("attained_s", above=-1.0)
            return Worse(sorted(everyone, key=lambda r: (-badness(r), -r.submit_s, r.job_id)), badness, -mine)
        above = inf if edge is None else self.edges_s[edge] * SLACK
        return Worse(view.preemptible("attained_s", above=above), badness, -mine)
