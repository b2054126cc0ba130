"""Compare a simulated run with the real run of the same trace.

The comparison has errors of averages and of single jobs, and the ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from loramux_analysis.agreement import kendall_tau, ks_distance, mape, relative_errors
from loramux_analysis.metrics import completed
from loramux_traces.runfolder import Run


@dataclass(frozen=True, slots=True)
class RealComparison:
    """A RealComparison says how a simulated run of a trace agrees with the real one.

    Errors are (simulated - real) / real, as fractions.
    """

    jobs: int
    only_simulated: int
    only_real: int
    mean_error: float | None
    """Error of the mean turnaround; an average hides what the next fields show."""
    error_p50: float | None
    """Median of the absolute error of a job's turnaround."""
    error_p90: float | None
    mape: float | None
    ks: float | None
    """Distance of the two turnaround distributions."""
    tau: float | None
    """Kendall tau of the jobs' order by turnaround."""
    makespan_error: float | None


def turnarounds(simulated: Run, real: Run) -> pd.DataFrame:
    """Return the turnaround of each job that completed in both runs, in seconds.

    The columns are job_id, real_s, simulated_s, in order of job id.
    """
    a, b = (completed(run.jobs).set_index("job_id")["turnaround_time"] for run in (real, simulated))
    return pd.concat([a, b], axis=1, keys=["real_s", "simulated_s"], join="inner").sort_index().reset_index()


def compare_real(simulated: Run, real: Run) -> RealComparison:
    """Compare two runs of one trace job by job, over the jobs that completed in both.

    Those missing in one are counted.
    """
    both = turnarounds(simulated, real)
    x, y = (both[side].to_numpy(dtype=np.float64) for side in ("simulated_s", "real_s"))
    errors = np.abs(relative_errors(x, y))
    spans = [float(run.summary.get("makespan_s") or 0.0) for run in (simulated, real)]
    return RealComparison(
        jobs=len(both),
        only_simulated=len(completed(simulated.jobs)) - len(both),
        only_real=len(completed(real.jobs)) - len(both),
        mean_error=float((x.mean() - y.mean()) / y.mean()) if len(both) and y.mean() > 0 else None,
        error_p50=float(np.percentile(errors, 50)) if len(errors) else None,
        error_p90=float(np.percentile(errors, 90)) if len(errors) else None,
        mape=mape(x, y),
        ks=ks_distance(x, y),
        tau=kendall_tau(x, y),
        makespan_error=(spans[0] - spans[1]) / spans[1] if spans[1] > 0 else None,
    )
