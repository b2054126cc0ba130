"""Draw the turnaround CDF: for every time, the share of jobs that were done within it.

There is one line a policy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from loramux_analysis.load import Results
from loramux_analysis.metrics import completed
from loramux_analysis.style import (
    Drawing,
    NothingToDrawError,
    colours,
    dashes,
    duration,
    log_time_axis,
    new_figure,
    short,
    styled,
)

#: A line cannot show more points than this.
_POINTS = 1000
_WIDTH = 1.8
_WIDER = 2.4


def draw(results: Results) -> list[Drawing]:
    """Draw one chart, with the jobs of all seeds pooled.

    Raises NothingToDrawError without job rows.
    """
    jobs = completed(results.jobs()) if results.runs else pd.DataFrame()
    if jobs.empty:
        raise NothingToDrawError("needs run folders with completed jobs (a results.csv alone has no jobs)")
    names = [name for name in results.policies if name in set(jobs["policy"])]
    colour, dash = colours(names), dashes(names)
    rows = []
    with styled():
        figure = new_figure(
            8.4 if len(names) <= 7 else 9.6,
            4.8 + 0.1 * max(0, len(names) - 12),
            "Turnaround of completed jobs",
            results.about(),
        )
        axes = figure.add_subplot()
        sorted_s = {name: _sorted_s(jobs, name) for name in names}
        for place, name in enumerate(names):
            values = sorted_s[name]
            # equal lines lie on each other: the first is the widest, and shows beside the last
            over = sum(np.array_equal(sorted_s[later], values) for later in names[place + 1 :])
            share = np.arange(1, len(values) + 1) / len(values)
            if len(values) > _POINTS:
                pick = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
                values, share = values[pick], share[pick]
            rows.append(pd.DataFrame({"policy": name, "turnaround_s": values, "share_of_jobs": share}))
            label = f"{short(name)}  (median {duration(float(np.median(values)))})"
            drawn = np.maximum(values, 1e-3)  # a log axis has no zero
            axes.step(
                np.append(drawn, drawn[-1] * 10), np.append(share, 1.0), where="post",
                color=colour[name], linestyle=dash[name], label=label,
                linewidth=_WIDTH + _WIDER * over,
            )  # fmt: skip
        data = pd.concat(rows, ignore_index=True)
        log_time_axis(axes, float(data["turnaround_s"].min()), float(data["turnaround_s"].max()))
        axes.set_ylim(0, 1.01)
        axes.set_xlabel("turnaround: finish − submission (log scale)")
        axes.set_ylabel("share of completed jobs")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return [Drawing("turnaround_cdf", figure, data)]


def _sorted_s(jobs: pd.DataFrame, policy: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.sort(jobs.loc[jobs["policy"] == policy, "turnaround_time"].to_numpy(dtype=np.float64))
