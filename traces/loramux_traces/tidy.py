"""Write and read results.csv of a sweep.

It has one tidy row per (policy, load, seed), with every figure of a run's summary in a column of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from loramux_traces.batches import BATCHED, batch_column
from loramux_traces.errors import InvalidInputError, Problem, StateError
from loramux_traces.filesafe import read_csv, write_csv
from loramux_traces.results import STATISTICS

RESULTS_NAME: Final = "results.csv"

#: Columns that say which run a row is; the figures follow them.
KEY_COLUMNS: Final = ("policy", "params", "load", "seed", "fidelity", "devices")
#: Why a run has no figures: its policy failed. Empty where it did not.
FAILED_COLUMN: Final = "policy_error"
_TEXT_COLUMNS: Final = (
    "policy", "params", "fidelity", "devices", "notes", "provenance", "seed_redraws", "interval_over", "unfit_jobs",
    FAILED_COLUMN, *(batch_column(figure) for figure in BATCHED.values()),
)  # fmt: skip
_NEEDED: Final = ("policy", "seed")
#: Summary keys that hold the five statistics of a per-job figure.
_SPREAD_KEYS: Final = ("turnaround_s", "waiting_s", "stretch")


def flat_name(key: str, stat: str) -> str:
    """Return the name of the column of one statistic.

    The unit stays last: `turnaround_s` and `mean` give `turnaround_mean_s`.
    """
    return f"{key[:-2]}_{stat}_s" if key.endswith("_s") else f"{key}_{stat}"


def flatten_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's summary as one flat row.

    `turnaround_s.p95` becomes `turnaround_p95_s`; numbers and text stay; notes are joined by `; `.
    """
    row: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            names = STATISTICS if key in _SPREAD_KEYS else tuple(value)
            row.update({flat_name(key, stat): value.get(stat) for stat in names})
        elif key == "notes":
            row[key] = "; ".join(str(note) for note in value)
        elif value is None or isinstance(value, str | int | float):
            row[key] = value
    return row


def write_results(path: Path, table: pd.DataFrame) -> None:
    """Write results.csv (a file path), key columns first, the rest in the order given.

    Raises StateError when it cannot be written.
    """
    first = [name for name in KEY_COLUMNS if name in table.columns]
    write_csv(path, table[[*first, *(name for name in table.columns if name not in first)]])


def read_results(path: Path) -> pd.DataFrame:
    """Read a results.csv, given as its path or its folder.

    Text columns are read as text, `load` and figures as numbers. Raises InvalidInputError when
    there is none, StateError when it cannot be understood.
    """
    file = path / RESULTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise InvalidInputError(
            [Problem(file=str(path), line=0, column="", value="", allowed=f"no {RESULTS_NAME} of a sweep here")]
        )
    table = read_csv(file, _TEXT_COLUMNS)
    missing = [name for name in _NEEDED if name not in table.columns]
    if missing:
        raise StateError(f"{file}: column {', '.join(missing)} is missing")
    return table
