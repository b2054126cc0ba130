"""Turn rows into jobs: validate each row and put every problem into words."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from loramux_traces.allowed import LENGTH_COLUMNS, allowed, unknown_column
from loramux_traces.canonical import COLUMNS
from loramux_traces.job import JobSpec
from loramux_traces.problems import Problems

#: A Check says what else is wrong with a job, as (column, value, what is allowed). It is for names
#: that only other packages know.
Check = Callable[[JobSpec], Iterable[tuple[str, object, str]]]
_VALIDATE: Final = TypeAdapter(JobSpec).validator.validate_python
_KNOWN: Final = frozenset(COLUMNS)


#: Epoch seconds since 2001 reach this. The end of a trace of 31 years may reach it too, but only
#: epoch seconds do so after a gap of more than half of it.
_EPOCH_S: Final = 1e9
_NUMBERS: Final = frozenset(c for c in COLUMNS if "number" in (text := allowed(c)) or "seconds" in text)
_CALENDAR: Final = "this is a calendar time: subtract the first submission from every row"
NOT_EPOCH: Final = f"must be seconds from the start of the trace, not from 1970; {_CALENDAR}"


def _submit_hint(value: object) -> str:
    text = str(value)[:64]
    try:
        calendar = _EPOCH_S <= float(text) < inf
    except ValueError:
        try:
            datetime.fromisoformat(text)
        except ValueError:
            return ""
        calendar = True
    return f"; {_CALENDAR}" if calendar else ""


def epoch_times(submit_s: Sequence[float]) -> list[int]:
    """Return which of the times of one file, by their index, are seconds since 1970."""
    if not any(time >= _EPOCH_S for time in submit_s):
        return []
    found, before, epoch = [], 0.0, False
    for time, index in sorted(zip(submit_s, range(len(submit_s)), strict=True)):
        epoch = epoch or time - before > _EPOCH_S / 2
        if epoch and time >= _EPOCH_S:
            found.append(index)
        before = time
    return found


class JobRows:
    """A JobRows object collects validated jobs.

    A bad or repeated row becomes a problem, and the reading goes on.
    """

    def __init__(self, problems: Problems, check: Check | None = None) -> None:
        self.jobs: list[JobSpec] = []
        self._problems = problems
        self._check = check
        self._lines = array("q")
        self._ids: dict[str, int] = {}

    def add(self, line: int, row: Mapping[str, Any]) -> None:
        """Validate one row, a mapping of column names to values.

        Absent columns get their defaults.
        """
        # Python's own notation (1_000), which pydantic takes and no other program writes
        for column in _NUMBERS & row.keys():
            value = row[column]
            if type(value) is str and "_" in value:
                self._problems.add(line, column, value, f"allowed: {allowed(column)}")
                return
        try:
            job: JobSpec = _VALIDATE(row)
        except ValidationError as error:
            self._explain(line, row, error)
            return
        if job.job_id in self._ids:
            first = self._ids[job.job_id]
            self._problems.add(line, "job_id", job.job_id, f"every job_id must be used once; line {first} has it too")
            return
        if self._check is not None:
            for column, value, rule in self._check(job):
                self._problems.add(line, column, value, rule)
        self._ids[job.job_id] = line
        self._lines.append(line)
        self.jobs.append(job)

    def finish(self) -> list[JobSpec]:
        """Return the jobs, and note epoch seconds in `submit_s`.

        Only the rows together tell epoch seconds from a very long trace.
        """
        for index in epoch_times([job.submit_s for job in self.jobs]):
            self._problems.add(self._lines[index], "submit_s", self.jobs[index].submit_s, NOT_EPOCH)
        return self.jobs

    def _explain(self, line: int, row: Mapping[str, Any], error: ValidationError) -> None:
        for item in error.errors(include_url=False):
            if item["type"] == "job_rule":
                column, rule = item["ctx"]["column"], item["ctx"]["allowed"]
                value = "" if column in LENGTH_COLUMNS else row.get(column)
                self._problems.add(line, column, value, rule)
                continue
            column = str(item["loc"][0]) if item["loc"] else ""
            if column not in _KNOWN:
                self._problems.add(line, column, "", unknown_column(column) if column else "must name columns")
            elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
                self._problems.add(line, column, "", f"is required: {allowed(column)}")
            else:
                hint = _submit_hint(item["input"]) if column == "submit_s" else ""
                self._problems.add(line, column, item["input"], f"allowed: {allowed(column)}{hint}")
