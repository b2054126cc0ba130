"""This module reads and writes the recorded stream of a run.

The stream holds what happened to the run, apart from what it decided. That is enough to take its
decisions again. It is the run's events.jsonl with these more kinds of rows, in the order in which
things happened. Times are in seconds from the start of the run:

    {"t_s", "event": "begin"}    the first instant
    {"t_s", "event": "wait"}     the device was empty until then
    {"t_s", "event": "stop"}     the run was ended from outside, with jobs left
    {"t_s", "event": "step", "began_s", "entries": [[job_id, [tokens of each row]], ...],
     "p_stop"?, "oom"?, "scale"?}
                                 a fused step, which ended at t_s: `p_stop` of its jobs after it,
                                 where not 0; `oom` true where it ran out of memory, so that
                                 nothing of it counts; `scale` where the online refit moved it

    {"t_s", "event": "loading", "job_id"}
    {"t_s", "event": "loaded", "job_id"}
                                 the state of a job that started was being made or read beside
                                 training, and the job took part from then on

Jobs that arrived up to an instant are heard at it. `finish` and `diverge` rows say how far each job
got. A live scheduler's `{"t_s", "event": "read", "job_id"}` says when a job's rows had been read:
it arrived then, not when it was submitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loramux_policies.loop.events import Event
from loramux_policies.views import FusedStep
from loramux_traces.errors import StateError

HAPPENED: Final = frozenset(("begin", "wait", "stop", "read", "loading", "loaded"))
"""Rows that are no decision and follow from none."""


def time_row(event: str, t_s: float) -> dict[str, Any]:
    """Return a `begin`, `wait` or `stop` row."""
    return {"t_s": t_s, "event": event}


def loading_row(event: str, t_s: float, job_id: str) -> dict[str, Any]:
    """Return a `loading` or `loaded` row."""
    return {"t_s": t_s, "event": event, "job_id": job_id}


def step_row(
    step: FusedStep,
    lengths: Sequence[Sequence[int]],
    p_stop: Mapping[str, float],
    began_s: float,
    ended_s: float,
    out_of_memory: bool,
    scale: float | None = None,
) -> dict[str, Any]:
    """Return a `step` row, with `lengths` in the order of the entries."""
    entries = [[entry.job_id, list(rows)] for entry, rows in zip(step.entries, lengths, strict=True)]
    row: dict[str, Any] = {"t_s": ended_s, "event": "step", "began_s": began_s, "entries": entries}
    likely = {job_id: p for job_id, p in p_stop.items() if p}
    if likely:
        row["p_stop"] = likely
    if out_of_memory:
        row["oom"] = True
    if scale is not None:
        row["scale"] = scale
    return row


def decisions(events: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the decision log of a run's events, in order.

    Its entries are (time, event, job, devices, detail), and for steps (time, "step", ((job, rows),
    ...)). Two runs decided the same where their logs are equal.
    """
    log: list[tuple[Any, ...]] = []
    for row in events:
        event = row["event"]
        if event == "step":
            log.append((row["t_s"], event, tuple((job_id, len(rows)) for job_id, rows in row["entries"])))
        elif event not in HAPPENED and "job_id" in row:
            log.append((row["t_s"], event, row["job_id"], tuple(row.get("devices", ())), row.get("detail", "")))
    return log


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Says what the device did until the instant `ended_s`.

    It ran a fused step that began at `began_s`, or nothing (None).
    """

    ended_s: float
    began_s: float | None = None
    out_of_memory: bool = False
    scale: float | None = None
    """The bound on dynamic bytes over their expected value from then on.

    It is None where the online refit did not move it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Holds one job's part of a stream, by rows trained on since its first."""

    lengths: tuple[int, ...]
    """Tokens of its rows, in order."""
    p_stop: Mapping[int, float]
    """Probability after so many rows; where nothing is said it is 0."""
    end_rows: int | None = None
    """Rows after which it ended; None where the run was over before that."""
    diverged: str = ""
    """Why the job diverged; empty where it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Holds what happened in a run."""

    begin_s: float
    moments: tuple[Moment, ...]
    jobs: Mapping[str, Story]
    arrived: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """When jobs came whose rows had to be read first, and as which ones."""
    loading: Mapping[tuple[str, int], int | None] = field(default_factory=dict)
    """Moments gone by when a job took part whose state had been loading.

    The key is the job with the moments gone by at its start. None where the job left, or the record
    ended, before that.
    """
    stopped: bool = False
    """Whether the run was ended from outside after the last moment."""

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]], batch_sizes: Mapping[str, int]) -> Stream:
        """Make a stream from the rows of events.jsonl.

        `batch_sizes`: each job's rows per optimizer step. StateError where they do not hold a
        stream.
        """
        events = list(events)
        if not any(row.get("event") == "begin" for row in events):
            raise StateError("the events hold no recorded stream: record the run (loramux train --record)")
        if any(row.get("event") == "scheduler" and "last_s" in row for row in events):
            raise StateError("the run was interrupted and went on: its decisions cannot be taken again in one piece")
        reader = _Reader(batch_sizes)
        for number, row in enumerate(events, 1):
            try:
                reader.read(row)
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"event {number} is not one of a recorded run: {error!r}") from error
        stories = {
            job_id: Story(
                lengths=tuple(lengths),
                p_stop=reader.p_stop.get(job_id, {}),
                end_rows=reader.ends.get(job_id, (None, ""))[0],
                diverged=reader.ends.get(job_id, (None, ""))[1],
            )
            for job_id, lengths in reader.lengths.items()
        }
        return cls(
            begin_s=reader.begin_s,
            moments=tuple(reader.moments),
            jobs=stories,
            arrived=reader.arrived,
            loading=reader.loading,
            stopped=reader.stopped,
        )


class _Reader:
    """Follows each job's data cursor through the rows."""

    def __init__(self, batch_sizes: Mapping[str, int]) -> None:
        self._batch_sizes = batch_sizes
        self.begin_s = 0.0
        self.stopped = False
        self.moments: list[Moment] = []
        self.lengths: dict[str, list[int]] = {}
        self.p_stop: dict[str, dict[int, float]] = {}
        self.ends: dict[str, tuple[int, str]] = {}
        self.arrived: dict[str, tuple[float, int]] = {}
        self.loading: dict[tuple[str, int], int | None] = {}
        self._latest: dict[str, int] = {}
        """By job, the moment at which its state was last found to be loading."""
        self._rows: dict[str, int] = {}

    def read(self, row: Mapping[str, Any]) -> None:
        """Read one more row of the stream."""
        event = row["event"]
        if event == "begin":
            self.begin_s = float(row["t_s"])
        elif event == "wait":
            self.moments.append(Moment(ended_s=float(row["t_s"])))
        elif event == "stop":
            self.stopped = True
        elif event == "step":
            self._step(row)
        elif event == "read":
            self.arrived.setdefault(row["job_id"], (float(row["t_s"]), len(self.arrived)))
        elif event == "loading":
            self._latest[row["job_id"]] = len(self.moments)
            self.loading[row["job_id"], len(self.moments)] = None
        elif event == "loaded":
            self.loading[row["job_id"], self._latest[row["job_id"]]] = len(self.moments)
        elif event in (Event.FINISH, Event.DIVERGE):
            job_id = row["job_id"]
            self.ends[job_id] = (self._rows[job_id], row["detail"] if event == Event.DIVERGE else "")

    def _step(self, row: Mapping[str, Any]) -> None:
        out_of_memory = bool(row.get("oom"))
        scale = row.get("scale")
        self.moments.append(
            Moment(
                ended_s=float(row["t_s"]),
                began_s=float(row["began_s"]),
                out_of_memory=out_of_memory,
                scale=None if scale is None else float(scale),
            )
        )
        likely = row.get("p_stop", {})
        for job_id, lengths in row["entries"]:
            at = self._rows.get(job_id, 0)
            known = self.lengths.setdefault(job_id, [])
            known[at : at + len(lengths)] = [int(n) for n in lengths]
            batch = self._batch_sizes[job_id]
            now = self._rows[job_id] = at // batch * batch if out_of_memory else at + len(lengths)
            if job_id in likely and not out_of_memory:
                self.p_stop.setdefault(job_id, {})[now] = float(likely[job_id])
