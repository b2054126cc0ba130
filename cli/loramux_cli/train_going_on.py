"""This module looks at what `loramux train` finds in --out: a run that is whole or not, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loramux_runtime.train.checks import Checked
    from loramux_runtime.train.progress import Progress

ALSO = ("training.jsonl", "progress")
"""What --force removes beside the files of every run."""
RESUMING = "--resume goes on with an unfinished one"


def earlier_run(out: Path, *, resume: bool, force: bool) -> Progress | None:
    """Return the unfinished run in --out that is to go on; refuse a folder in use otherwise.

    None also where --resume finds no unfinished run: `may_go_on` says what is there.
    """
    from loramux_runtime.train.progress import JOURNAL, Progress
    from loramux_traces.errors import StateError
    from loramux_traces.runfolder import PROGRESS, check_folder, prepare_folder

    unfinished = (out / PROGRESS / JOURNAL).exists()
    if resume:
        check_folder(out, resume=True)
        return Progress.open(out) if unfinished else None
    if unfinished and not force:
        found = Progress.open(out)
        lines = "\n".join(found.standing())
        found.journal.close()
        how = "--resume goes on with it, --force starts anew"
        raise StateError(f"{out}: holds an unfinished run ({how}): {lines}")
    if force:
        # nothing is removed before every job has been checked
        check_folder(out, force=True, also=ALSO)
    else:
        prepare_folder(out)
    return None


def may_go_on(out: Path, settings: dict[str, Any], progress: Progress | None, say: Callable[[str], None]) -> bool:
    """Return whether something is left to do; UsageError where there is no such run."""
    from loramux_runtime.train.settings import differences, listed, version_changes
    from loramux_traces.errors import UsageError
    from loramux_traces.runfolder import MANIFEST, read_run

    known: dict[str, Any] | None = None
    if progress is not None:
        known = progress.facts["settings"]
    elif (out / MANIFEST).is_file():
        run = read_run(out)
        known = run.manifest.get("settings")
    if known is None:
        raise UsageError(f"{out}: there is no run of loramux train to go on with; start one without --resume")
    changed = differences(settings, known)
    if changed:
        raise UsageError(f"{out}: this is not the run that was begun there:{listed(changed)}")
    if progress is None:
        say(f"{out}: the run is whole ({len(run.jobs):,} jobs have ended): nothing is left to do")
        return False
    others = version_changes(known)
    if others:
        say(f"note: the bits may be others from here on: the run began with {', '.join(others)}")
    return True


def check_rows(out: Path, progress: Progress, checked: Checked) -> None:
    """Raise UsageError where a job's rows are not those that the run began with."""
    from loramux_runtime.train.settings import data_differences, listed
    from loramux_traces.errors import UsageError

    changed = data_differences(checked.data_facts, progress.facts["data"])
    if changed:
        raise UsageError(f"{out}: cannot go on with other data:{listed(changed)}")
