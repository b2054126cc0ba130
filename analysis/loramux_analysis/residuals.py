"""Draw residuals of fitted models.

The charts show measured over predicted, against what was measured, and how they are spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from loramux_analysis.style import FAINT, PALETTE, Drawing, log_numbers, new_figure, save, styled


def draw_residuals(
    folder: Path, name: str, title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float], str]]
) -> list[Path]:
    """Draw one chart per series as `<name>-<series>.png`, .svg and .csv, and return the paths.

    `series`: name -> (measured, log(measured / predicted), label of the measured axis). Raises
    StateError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for key, (measured, logs, label) in series.items():
        data = pd.DataFrame({"measured": measured, "log_measured_over_predicted": logs})
        with styled():
            figure = new_figure(9.0, 4.2, f"{title}: {key}", "Each step was predicted by a fit to other folds.")
            left, right = figure.subplots(1, 2, width_ratios=(3, 2))
            errors = 100 * np.expm1(-data["log_measured_over_predicted"].to_numpy())
            left.axhline(0, color=FAINT, linewidth=1)
            left.plot(data["measured"], errors, "o", color=PALETTE[0], markersize=3.5, alpha=0.6, markeredgewidth=0)
            log_numbers(left)
            left.set_xlabel(label)
            left.set_ylabel("error of the prediction, %")
            right.hist(errors, bins=40, color=PALETTE[0])
            right.set_xlabel("error of the prediction, %")
            right.set_ylabel("steps")
            drawing = Drawing(f"{name}-{key}", figure, data)
        paths += save(drawing, folder)
    return paths
