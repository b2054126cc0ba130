"""Draw padding waste: of all tokens computed, the share that were pads and rounding."""

from __future__ import annotations

import numpy as np
import pandas as pd

from loramux_analysis.compare import interval
from loramux_analysis.load import Results
from loramux_analysis.metrics import figure
from loramux_analysis.style import INK, Drawing, NothingToDrawError, new_figure, short, styled

ROUNDING_ONLY = 0.01
"""Packed steps are rounded up to a few tokens. Less waste than this is that rounding only, and no
chart is drawn.
"""
_REAL, _PAD = "#56B4E9", "#D55E00"


def draw(results: Results) -> list[Drawing]:
    """Draw one stacked bar a policy.

    Raises NothingToDrawError when no run counted its padding, or the runs have no padding to show.
    """
    load = results.loads[-1] if results.loads else None
    table = results.table if load is None else results.at_load(load)
    if "padding_fraction" not in table.columns or not table["padding_fraction"].notna().any():
        raise NothingToDrawError("no run has a padding_fraction")
    if float(table["padding_fraction"].max()) < ROUNDING_ONLY:
        raise NothingToDrawError("the runs are packed: they pad nothing but the rounding of a step's length")
    names = [name for name in results.policies if name in set(table["policy"])]
    found = [interval(results, table, name, figure("padding_fraction")) for name in names]
    data = pd.DataFrame(
        {
            "policy": names,
            "padding_percent": [100 * i.mean for i in found],
            "low": [100 * i.low for i in found],
            "high": [100 * i.high for i in found],
            "n": [i.n for i in found],
        }
    )
    with styled():
        title = "Padding: computed tokens that train nothing"
        fig = new_figure(8.4, 1.7 + 0.32 * len(names), title, results.about())
        axes = fig.add_subplot()
        place = np.arange(len(names))
        pads = data["padding_percent"].to_numpy(dtype=np.float64)
        axes.barh(place, 100 - pads, height=0.72, color=_REAL, label="tokens trained on")
        axes.barh(place, pads, left=100 - pads, height=0.72, color=_PAD, hatch="////", edgecolor="white", label="pads")
        low, high = (data[side].to_numpy(dtype=np.float64) for side in ("low", "high"))
        known = high - low > 0.3  # percentage points: a narrower whisker is only a blot
        whiskers = np.maximum(0, np.stack([high - pads, pads - low])[:, known])
        axes.errorbar(100 - pads[known], place[known], xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
        for at, value in enumerate(pads):
            if np.isfinite(value):
                axes.annotate(
                    f"{value:.1f}% pads", (100, at), (4, 0), textcoords="offset points", va="center", fontsize=8.5
                )
        axes.set_yticks(place, [short(n) for n in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of computed tokens, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        return [Drawing("padding", fig, data)]
