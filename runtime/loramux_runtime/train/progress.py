"""This module is the folder in which an unfinished run of `loramux train` keeps what it needs.

OUT/progress/ holds the journal of the run (`journal`) and a checkpoint of every job that has begun.
It goes when the run is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from loramux_runtime.jobs.checkpoint import CheckpointStore
from loramux_runtime.train.journal import Journal, Row
from loramux_traces.errors import StateError
from loramux_traces.filesafe import sync
from loramux_traces.results import COMPLETED, RunStats
from loramux_traces.runfolder import PROGRESS

JOURNAL: Final = "journal.sqlite"
CHECKPOINTS: Final = "checkpoints"
EVENTS, SAMPLES, QUEUE = "event", "sample", "queue"
"""The logs of the journal."""
MOST_NAMED: Final = 20
"""Jobs that are named one by one where a run is told of; the others are counted."""


@dataclass(slots=True, kw_only=True)
class Earlier:
    """Holds what the processes before this one have done of the run; at first that is nothing."""

    now_s: float = 0.0
    """The clock of the run at the last commit."""
    stats: RunStats | None = None
    interruptions: int = 0
    jobs: dict[str, Row] = field(default_factory=dict)
    """Figures of the jobs that have arrived; those of an ended job hold its row of jobs.csv."""
    records: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    samples: list[list[Any]] = field(default_factory=list)
    queue: list[list[Any]] = field(default_factory=list)

    @property
    def ended(self) -> dict[str, Row]:
        """The rows of jobs.csv of the jobs that have ended, by job."""
        return {job_id: row["ended"] for job_id, row in self.jobs.items() if row.get("ended")}

    @property
    def scores(self) -> dict[str, Row]:
        """First and last evaluation of the jobs that have ended, by job."""
        return {job_id: row["score"] for job_id, row in self.jobs.items() if row.get("score")}


class Progress:
    """Knows the progress folder of one run; one process at a time, the owner of OUT, may use it."""

    def __init__(self, out: Path, journal: Journal) -> None:
        self.out, self.journal = out, journal
        self.folder = out / PROGRESS
        self.facts = journal.facts()
        """What the run was begun with: `settings`, `data`, `begun_at`."""

    @classmethod
    def begin(cls, out: Path, settings: Mapping[str, Any], data: Mapping[str, Any], begun_at: datetime) -> Progress:
        """Make the folder of a new run; StateError where that cannot be."""
        folder = out / PROGRESS
        try:
            folder.mkdir()
            sync(out)
        except OSError as error:
            raise StateError(f"{folder}: cannot be made ({error.strerror})") from error
        journal = Journal(folder / JOURNAL, create=True)
        about = {"settings": settings, "data": data, "begun_at": begun_at.isoformat()}
        journal.commit(facts=about, jobs={})
        return cls(out, journal)

    @classmethod
    def open(cls, out: Path) -> Progress:
        """Open the folder of an unfinished run; StateError where its journal cannot be read."""
        progress = cls(out, Journal(out / PROGRESS / JOURNAL))
        if "settings" not in progress.facts:
            raise StateError(f"{progress.journal.file}: the run was ended before it began; --force starts it anew")
        return progress

    @property
    def begun_at(self) -> datetime:
        """When the run began; chat templates that write the date are told this one to the end."""
        return datetime.fromisoformat(self.facts["begun_at"])

    def earlier(self) -> Earlier:
        """Return what was done so far."""
        facts = self.journal.facts()
        stats = facts.get("stats")
        return Earlier(
            now_s=float(facts.get("now_s", 0.0)),
            stats=None if stats is None else RunStats(**stats),
            interruptions=int(facts.get("interruptions", 0)),
            jobs=self.journal.jobs(),
            records=self.journal.records(),
            events=self.journal.log(EVENTS),
            samples=self.journal.log(SAMPLES),
            queue=self.journal.log(QUEUE),
        )

    def standing(self) -> list[str]:
        """Return lines that say how far each job is, and where that is on the disk."""
        jobs, settings = self.journal.jobs(), self.facts["settings"]["jobs"]
        ended = {job_id: jobs[job_id]["ended"] for job_id in settings if jobs.get(job_id, {}).get("ended")}
        store = CheckpointStore(self.folder / CHECKPOINTS)
        newest = {job_id: store.newest(job_id) for job_id in settings if job_id not in ended}
        saved = sum(place is not None for place in newest.values())
        counts = Counter(row["final_state"] for row in ended.values())
        said = [f"{n:,} {state}" for state, n in sorted(counts.items())]
        said += [f"{saved:,} unfinished with a checkpoint"] if saved else []
        said += [f"{len(newest) - saved:,} not begun or not saved yet"] if saved < len(newest) else []
        lines = [f"{len(settings):,} jobs: {', '.join(said)}"]
        named = []
        for job_id, place in newest.items():
            if place is not None:
                (step, rows), path = place
                inside = f" and {rows} rows" if rows else ""
                named.append(f"  {job_id}: step {step}{inside}, checkpoint in {path}")
        for job_id, row in ended.items():
            where = f"adapter in {self.out / 'adapters' / job_id}" if row["final_state"] == COMPLETED else row["reason"]
            named.append(f"  {job_id}: {row['final_state']}, {where}")
        lines += named[:MOST_NAMED]
        if len(named) > MOST_NAMED:
            lines.append(f"  ... and {len(named) - MOST_NAMED:,} more")
        return lines

    def remove(self) -> None:
        """Delete the folder of a run that is whole; what cannot be deleted costs only space."""
        self.journal.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(self.folder)
