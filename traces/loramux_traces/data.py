"""Find the data files of this package.

They are in the repository's traces/data, or inside the installed package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from loramux_traces.errors import StateError

# A wheel carries the files inside the package. An editable install points at traces/, and the files
# are in `data` beside it.
_PLACES: Final = (Path(__file__).parent / "data", Path(__file__).parents[1] / "data")


def _find(name: str) -> Path:
    for place in _PLACES:
        path = place / name
        if path.is_file():
            return path
    raise StateError(
        f"{name} is missing from the installation (looked in {', '.join(map(str, _PLACES))}): reinstall loramux"
    )


def sample_path() -> Path:
    """Return the path of the sample trace: about 1,000 Philly-like jobs, modelled.

    The first lines of the file say how it was made and how to make it again.
    """
    return _find("sample.csv")


def philly_stats_path() -> Path:
    """Return the path of the summary statistics of Philly (Jeon et al., ATC 2019; CC-BY-4.0)."""
    return _find("philly_stats.json")
