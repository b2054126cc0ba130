"""Draw simulated against real: each job's turnaround and each policy's mean in both.

The chart gives MAPE and Kendall's tau.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from loramux_analysis.agreement import kendall_tau, mape
from loramux_analysis.load import Results, spec
from loramux_analysis.real import turnarounds
from loramux_analysis.style import (
    FAINT,
    Drawing,
    NothingToDrawError,
    colours,
    log_time_axis,
    new_figure,
    short,
    styled,
)
from loramux_traces.runfolder import Run


def pairs(results: Results) -> list[tuple[str, Run, Run]]:
    """Return (policy, simulated, real) for every real run that has a simulated twin.

    A twin is of the same policy and trace. Where several seeds were simulated, it is the one with
    the real run's seed, else the lowest.
    """
    found = []
    for real in results.runs:
        if real.manifest.get("kind") != "real":
            continue
        twins = [run for run in results.runs if run.manifest.get("kind") != "real" and _same(run, real)]
        if twins:
            twin = min(twins, key=lambda run: (run.seed != real.seed, run.seed, str(run.path)))
            found.append((_policy(real), twin, real))
    return sorted(found, key=lambda item: item[0])


def draw(results: Results) -> list[Drawing]:
    """Draw one chart of all pairs of runs.

    Raises NothingToDrawError when no real run has a simulated twin.
    """
    twins = pairs(results)
    tables = [turnarounds(simulated, real).assign(policy=policy) for policy, simulated, real in twins]
    columns = ["policy", "job_id", "real_s", "simulated_s"]
    data = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame()
    if data.empty:
        raise NothingToDrawError("needs a real run and a simulated run of the same policy and trace")
    names = list(dict.fromkeys(str(policy) for policy in data["policy"]))
    colour = colours(names)
    means = data.groupby("policy")[["real_s", "simulated_s"]].mean().reindex(names)
    with styled():
        runs = [run for _, simulated, real in twins for run in (simulated, real)]
        fig = new_figure(10.8, 5.2, "Simulated against real", results.about(*runs))
        left, right = fig.subplots(1, 2)
        for name in names:
            part = data[data["policy"] == name]
            left.plot(
                part["real_s"], part["simulated_s"], "o", markersize=3.5, alpha=0.5, markeredgewidth=0,
                color=colour[name], label=short(name),
            )  # fmt: skip
            right.plot(means["real_s"][name], means["simulated_s"][name], "o", markersize=9, color=colour[name])
            right.annotate(
                short(name), (means["real_s"][name], means["simulated_s"][name]), (7, -3),
                textcoords="offset points", fontsize=9,
            )  # fmt: skip
        for axes, values in ((left, data), (right, means)):
            low = max(1e-3, float(values[["real_s", "simulated_s"]].min().min()))
            high = float(values[["real_s", "simulated_s"]].max().max())
            if axes is right:  # room for the names
                low, high = low / 1.25, high * 1.6
            axes.axline((low, low), (high, high), color=FAINT, linewidth=1, linestyle="--", zorder=0)
            log_time_axis(axes, low, high)
            axes.set_yscale("log")
            ticks = axes.get_xticks()
            axes.set_yticks(ticks, [label.get_text() for label in axes.get_xticklabels()])
            axes.minorticks_off()
            axes.set_ylim(axes.get_xlim())
            axes.set_aspect("equal")
        error = mape(data["simulated_s"].to_numpy(dtype=np.float64), data["real_s"].to_numpy(dtype=np.float64))
        tau = kendall_tau(means["simulated_s"].to_numpy(dtype=np.float64), means["real_s"].to_numpy(dtype=np.float64))
        left.set_title("Jobs: MAPE " + (f"{100 * error:.1f}%" if error is not None else "unknown"))
        ranking = f"Kendall tau of the ranking {tau:.2f}" if tau is not None else "one policy, no ranking"
        right.set_title(f"Policies: {ranking}")
        left.set_xlabel("real turnaround of a job")
        left.set_ylabel("simulated turnaround of a job")
        right.set_xlabel("real mean turnaround")
        right.set_ylabel("simulated mean turnaround")
        left.legend(loc="upper left", markerscale=2)
        return [Drawing("simulated_vs_real", fig, data)]


def _policy(run: Run) -> str:
    """Return a run's policy with its parameters."""
    params = run.manifest.get("policy_params")
    return spec(run.policy, params if isinstance(params, dict) else {})


def _same(simulated: Run, real: Run) -> bool:
    """Say whether two runs are of one policy and one trace."""
    digests = [(run.manifest.get("trace") or {}).get("sha256") for run in (simulated, real)]
    return _policy(simulated) == _policy(real) and digests[0] == digests[1] and digests[0] is not None
