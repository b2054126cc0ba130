"""Draw the charts of a set of results into a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from loramux_analysis.charts import CHARTS, paired
from loramux_analysis.load import Results
from loramux_analysis.style import NothingToDrawError, save
from loramux_analysis.timeline import write_chrome_trace
from loramux_traces.errors import InvalidInputError, Problem, StateError, UsageError
from loramux_traces.runfolder import run_folder_name

#: The one kind that is no picture: a timeline for Perfetto. It is written only when asked for.
PERFETTO: Final = "perfetto"
KINDS: Final = (*CHARTS, PERFETTO)


def draw_charts(
    results: Results,
    folder: Path,
    kinds: Sequence[str] = (),
    *,
    baseline: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Draw every chart these results have data for, or the `kinds` asked for.

    Returns the files, each chart as PNG, SVG and CSV. `tell` is called with one line per chart that
    is drawn or left out. Older charts of the same names are replaced. Raises UsageError for an
    unknown kind, InvalidInputError when a kind asked for lacks its data, StateError when the folder
    cannot be written.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"--kind {unknown[0]}: is not one of {', '.join(KINDS)}")
    make_folder(folder)
    written: list[Path] = []
    for kind in dict.fromkeys(kinds or CHARTS):
        if kind == PERFETTO:
            written += _timelines(results, folder, tell)
            continue
        try:
            drawings = paired.draw(results, baseline) if kind == "paired" else CHARTS[kind](results)
        except NothingToDrawError as lack:
            if kinds:
                raise InvalidInputError(
                    [Problem(file=f"--kind {kind}", line=0, column="", value="", allowed=str(lack))]
                ) from None
            tell(f"{kind}: left out, {lack}")
            continue
        for drawing in drawings:
            written += save(drawing, folder)
            tell(f"{kind}: {drawing.name}")
    return written


def _timelines(results: Results, folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Write a Chrome trace of one run of each policy.

    Raises InvalidInputError where no run has a timeline.
    """
    runs = {label: run for label, run in results.one_per_policy.items() if run.has_timeline}
    if not runs:
        raise InvalidInputError(
            [Problem(file=f"--kind {PERFETTO}", line=0, column="", value="", allowed="needs runs with a timeline")]
        )
    written = []
    for label, run in runs.items():
        path = folder / f"timeline-{run_folder_name(label, run.seed)}.json"
        written.append(write_chrome_trace(run, path))
        tell(f"{PERFETTO}: {path.name} (open at ui.perfetto.dev)")
    return written


def make_folder(folder: Path) -> None:
    """Make a folder for charts, if need be.

    Raises StateError for a symlink, a file, or a place that cannot be written.
    """
    if folder.is_symlink():
        raise StateError(f"{folder}: is a symlink; give the folder itself")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{folder}: cannot be made ({error.strerror})") from error
