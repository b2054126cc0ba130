"""List every chart by its kind.

A chart is a function of results that gives drawings, or says what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from loramux_analysis.charts import agreement, bars, cdf, gantt, load_curve, over_time, padding, paired
from loramux_analysis.load import Results
from loramux_analysis.style import Drawing

#: Kind, as `loramux plot --kind` takes it, to the chart.
CHARTS: Final[dict[str, Callable[[Results], list[Drawing]]]] = {
    "cdf": cdf.draw,
    "bars": bars.draw,
    "paired": paired.draw,
    "gantt": gantt.draw,
    "time": over_time.draw,
    "load": load_curve.draw,
    "padding": padding.draw,
    "real": agreement.draw,
}
