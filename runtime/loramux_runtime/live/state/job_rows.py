"""This module describes what the rows of a state folder hold.

It also names the states that a job of it goes through.
"""

from __future__ import annotations

from typing import Any, Final, TypedDict

QUEUED: Final = "QUEUED"
"""The job is acknowledged; no scheduler has looked at it yet."""
WAITING: Final = "WAITING"
RUNNING: Final = "RUNNING"
HELD: Final = "HELD"
"""The job is paused by a user until `resume`."""
DRAINING: Final = "the scheduler is draining"
"""Why a job that has not begun waits for the next scheduler."""
OPEN: Final = (QUEUED, WAITING, RUNNING, HELD)
"""States that are not final."""

Fields = dict[str, Any]
"""Some columns of a row by name, a row of the event log, or a training record."""


class JobRow(TypedDict):
    """Describes one row of the table `jobs`.

    Times are on the scheduler's clock unless they say `unix`.
    """

    seq: int
    """Number of the job in order of submission."""
    job_id: str
    config: str
    """The job's configuration (`jobs_file.TrainJob`), as JSON."""
    folder: str
    """Folder in which the job's relative paths start."""
    submitted_unix_s: float
    submitted_at: str | None
    """Moment of the submission (`state.moments`), as JSON."""
    delay_s: float
    submit_s: float | None
    """Time of submission; None until a scheduler has looked at the job."""
    state: str
    reason: str
    why: str
    """Why the job waits, for `status`."""
    method: str
    priority: int
    user: str
    group: str
    micro_batch: int | None
    """Rows at a time that the job began with: another number would be other bits."""
    drawn_by: int | None
    """Micro-batch size by which the job's synthetic rows are drawn."""
    data_sha256: str | None
    kept: str | None
    """Where the job's rows are kept (`reading.row_files`), as JSON."""
    made_from: str | None
    """What the job's rows were made from (`data.made_from`), as JSON."""
    trusted: int
    """Whether the job goes on with its kept rows although its data file has changed."""
    admission_deaths: int
    """Processes that died while they took the job in."""
    notes: str
    """What a user should know of the job's rows: how many were cut, columns that are not used."""
    step: int
    total_steps: int | None
    progress_steps: float
    loss: float | None
    tokens: int
    tokens_per_s: float | None
    predicted_bytes: float | None
    peak_bytes: float | None
    start_s: float | None
    finish_s: float | None
    stopped_s: float | None
    paused_s: float
    expected_finish_s: float | None
    attained_s: float
    solo_s: float | None
    devices: str
    preemptions: int
    oom_events: int
    crashes: int
    crashed_at: float | None
    """Optimizer steps that the job had done when its process died."""
    ran: int


class CommandRow(TypedDict):
    """Describes one row of the table `commands`."""

    seq: int
    verb: str
    job_id: str
    argument: str
    issued_unix_s: float
    done_unix_s: float | None
    refused: str
    answer: str
