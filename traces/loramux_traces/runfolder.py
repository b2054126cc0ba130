"""Define the run folder: what one run of one policy with one seed leaves behind.

Every package writes and reads it in the same way.

    manifest.json      what was run: policy, seed, trace, devices, versions, origin of the costs
                       (written last)
    jobs.csv           JOB_COLUMNS, one row a job
    events.jsonl       the recorded stream of events (absent when the log was off)
    summary.json       the figures of the run
    timeline.json.gz   stays, memory and queue over time (absent when not kept)
    plots/             charts, drawn when asked for
    progress/          what an unfinished `loramux train` needs to go on (gone when it is whole)

Several runs of one command lie side by side in one folder, `<policy>-s<seed>/` each, beside that
folder's own manifest.json and summary.json (the object of `simulate --json`); a sweep's folder has
results.csv (see `tidy`).
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd

from loramux_traces.errors import InvalidInputError, Problem, StateError
from loramux_traces.files import MAX_DOCUMENT, MAX_TABLE, open_file, read_text
from loramux_traces.filesafe import read_csv, read_json_object, write_csv, write_json, write_json_gz, write_jsonl
from loramux_traces.locking import LOCK
from loramux_traces.results import COUNT_COLUMNS, JOB_COLUMNS, SCHEMA_VERSION, TEXT_COLUMNS, empty_timeline
from loramux_traces.strict_json import JsonError, parse_json
from loramux_traces.tidy import RESULTS_NAME

MANIFEST: Final = "manifest.json"
JOBS: Final = "jobs.csv"
EVENTS: Final = "events.jsonl"
SUMMARY: Final = "summary.json"
TIMELINE: Final = "timeline.json.gz"
PLOTS: Final = "plots"
PROGRESS: Final = "progress"
REPORT: Final = "report.md"
_OWN_FILES: Final = (MANIFEST, JOBS, EVENTS, SUMMARY, TIMELINE, RESULTS_NAME, REPORT)


_MAX_EVENT: Final = 16 << 20
"""Bytes of the longest line of events; what is longer is cut, and then no JSON."""


@contextmanager
def _as_state() -> Iterator[None]:
    """Raise StateError where a file of a run cannot be read."""
    try:
        yield
    except InvalidInputError as error:
        raise StateError(str(error)) from error


@dataclass(frozen=True)
class Run:
    """A Run is one run that was read back from its folder.

    `manifest`, `summary` and `jobs` are checked when the folder is read, the large files when they
    are first asked for.
    """

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    jobs: pd.DataFrame = field(repr=False)

    @property
    def policy(self) -> str:
        """Name of the policy, without its parameters."""
        return str(self.manifest["policy"])

    @property
    def seed(self) -> int:
        """Seed of the run (0 for a real run without one)."""
        return int(self.manifest.get("seed") or 0)

    @property
    def has_timeline(self) -> bool:
        """Whether the run kept a timeline."""
        return (self.path / TIMELINE).is_file()

    @cached_property
    def timeline(self) -> dict[str, Any]:
        """Columns as in `results.empty_timeline` (empty when none was kept).

        Raises StateError when the file is corrupt.
        """
        if not self.has_timeline:
            return empty_timeline()
        return _read_timeline(self.path / TIMELINE)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events in order, read as they are asked for.

        There are none when no log was kept. Raises StateError on a corrupt line.
        """
        file = self.path / EVENTS
        if not file.is_file():
            return
        with _as_state(), open_file(file, MAX_TABLE, "a log of events") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_MAX_EVENT), b""), start=1):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise StateError(f"{file}:{number}: not a JSON object (truncated or corrupt)") from error
                if not isinstance(event, dict):
                    raise StateError(f"{file}:{number}: not a JSON object")
                yield event


def run_folder_name(policy: str, seed: int) -> str:
    """Return the name of the folder of one run beside others.

    It is the policy as the user wrote it, made a file name, and the seed.
    """
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", policy).strip("-.") or "policy"
    if len(slug) > 80:  # file names end at 255 bytes; the checksum keeps long ones apart
        slug = f"{slug[:70]}-{zlib.crc32(policy.encode()):08x}"
    return f"{slug}-s{seed}"


def prepare_folder(
    path: Path,
    *,
    force: bool = False,
    resume: bool = False,
    also: Iterable[str] = (),
    resuming: str = "",
    private: bool = False,
) -> Path:
    """Make `path` ready to be written into and return it.

    A folder that already holds something is refused, unless `resume` (all is kept) or `force`
    (loramux's own files and those named in `also` are removed, in it and in the runs directly below
    it; a stranger's files and trained adapters never are). `resuming`: what the command offers
    beside --force, for the message. `private`: a folder that is made is for its owner alone (mode
    0700); one that is there keeps its mode. Raises StateError for a folder in use without leave, a
    symlink, a file, or a place that cannot be written.
    """
    check_folder(path, force=force, resume=resume, also=also, resuming=resuming)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(0o700 if private else 0o777, exist_ok=True)
        if force and not resume and _in_use(path):
            _clear(path, {*_OWN_FILES, *also})
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror})") from error
    return path


def check_folder(
    path: Path, *, force: bool = False, resume: bool = False, also: Iterable[str] = (), resuming: str = ""
) -> None:
    """Raise StateError where `prepare_folder` would refuse the folder; nothing is written."""
    if path.is_symlink():
        raise StateError(f"{path}: is a symlink; give the folder itself")
    if path.exists() and not path.is_dir():
        raise StateError(f"{path}: is a file, not a folder")
    try:
        if resume or not path.exists() or not _in_use(path):
            return
        if not force:
            on = f", {resuming}" if resuming else ""
            raise StateError(f"{path}: is not empty; --force replaces an older run{on}")
        _to_clear(path, {*_OWN_FILES, *also})
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror})") from error


def _in_use(path: Path) -> bool:
    return any(file.name != LOCK for file in path.iterdir())


def _to_clear(path: Path, own: set[str]) -> list[Path]:
    """Return the run folders to remove the files of an older run from.

    Raises StateError when the folder does not look like loramux's.
    """
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink() and p.name != PLOTS)]
    runs = [p for p in folders if _is_ours(p)]
    if not runs:
        raise StateError(f"{path}: holds something that is not a loramux run; --force replaces only those")
    unfinished = [p for p in runs if (p / PROGRESS).exists() and PROGRESS not in own]
    if unfinished:
        raise StateError(f"{unfinished[0]}: holds an unfinished run of loramux train, which only that replaces")
    kept = [p for p in runs if (p / "adapters").exists()]
    if kept:
        raise StateError(f"{kept[0]}: holds trained adapters, which --force never deletes; move them away first")
    return runs


def _clear(path: Path, own: set[str]) -> None:
    """Remove the files of an older run."""
    for folder in reversed(_to_clear(path, own)):
        plots = folder / PLOTS
        drawn = sorted(plots.iterdir()) if plots.is_dir() and not plots.is_symlink() else []
        ours = [p for p in folder.iterdir() if p.name in own or re.fullmatch(r"\..+\.\d+\.tmp", p.name)]
        for file in [*ours, *(p for p in drawn if p.suffix in (".png", ".svg", ".csv", ".json"))]:
            if (file.is_file() or file.is_symlink()) and not _is_foreign_table(file):
                file.unlink()
        if PROGRESS in own and (folder / PROGRESS).is_dir() and not (folder / PROGRESS).is_symlink():
            shutil.rmtree(folder / PROGRESS)
        if drawn and not any(plots.iterdir()):
            plots.rmdir()
        if folder != path and not any(folder.iterdir()):
            folder.rmdir()


def _is_ours(folder: Path) -> bool:
    """Say whether loramux wrote in this folder.

    The sign is a manifest of ours, or (for a run that was cut short) a table of results, or the
    progress of a training run.
    """
    if (folder / PROGRESS / "journal.sqlite").is_file():
        return True
    try:
        manifest = read_json_object(folder / MANIFEST)
    except StateError:
        manifest = {}
    if "schema_version" in manifest and {"kind", "policy", "argv"} & set(manifest):
        return True
    return (folder / JOBS).is_file() and not _is_foreign_table(folder / JOBS)


def _is_foreign_table(file: Path) -> bool:
    """Say whether `file` is a jobs.csv that is not a table of results.

    It is then most likely a user's trace, which has the same name.
    """
    if file.name != JOBS or not file.is_file():
        return False
    with file.open("rb") as lines:
        return lines.readline(4096).strip() != ",".join(JOB_COLUMNS).encode()


def write_run(
    path: Path,
    *,
    manifest: Mapping[str, Any],
    jobs: pd.DataFrame,
    events: Iterable[dict[str, Any]] | None,
    summary: Mapping[str, Any],
    timeline: Mapping[str, Any] | None,
) -> None:
    """Write one run into an existing folder (see `prepare_folder`).

    `jobs` has JOB_COLUMNS in any order; rows are sorted by job_id. Each file appears whole or not
    at all, and the manifest last, so that a folder with a manifest is a finished one. Equal data
    give equal bytes. Raises ValueError when `jobs` lacks a column (a defect of the caller),
    StateError when the folder cannot be written.
    """
    missing = [name for name in JOB_COLUMNS if name not in jobs.columns]
    if missing:
        raise ValueError(f"jobs lacks {', '.join(missing)}")
    if _is_foreign_table(path / JOBS):
        raise StateError(f"{path / JOBS}: is not a table of results (a trace?) and is not overwritten")
    write_csv(path / JOBS, jobs[list(JOB_COLUMNS)].sort_values("job_id", kind="stable"))
    if events is not None:
        write_jsonl(path / EVENTS, events)
    if timeline is not None:
        write_json_gz(path / TIMELINE, dict(timeline))
    write_json(path / SUMMARY, dict(summary))
    write_json(path / MANIFEST, {"schema_version": SCHEMA_VERSION, **manifest})


def read_run(path: Path) -> Run:
    """Read a run folder, and check it.

    Raises InvalidInputError when `path` is none, StateError when one of its files is corrupt.
    """
    if not (path / JOBS).is_file():
        raise _not_a_run(path, f"not a run folder (no {JOBS})")
    if not (path / MANIFEST).is_file():
        raise StateError(f"{path}: the run was not finished (no {MANIFEST}); run it again with --force")
    manifest = read_json_object(path / MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version")
        raise StateError(f"{path / MANIFEST}: schema_version is {found!r}, this loramux reads {SCHEMA_VERSION}")
    if not isinstance(manifest.get("policy"), str):
        raise StateError(f"{path / MANIFEST}: names no policy")
    return Run(path, manifest, read_json_object(path / SUMMARY), _read_jobs(path / JOBS))


def find_runs(path: Path) -> list[Run]:
    """Find every finished run at `path` or up to two folders below it, in order of folder name.

    A sweep folder that kept only its results.csv gives an empty list. Raises InvalidInputError when
    there is neither a run nor a results.csv, StateError when a run is corrupt.
    """
    if not path.is_dir():
        raise _not_a_run(path, "no such folder" if not path.exists() else "a file, not a run folder")
    if (path / JOBS).is_file():
        return [read_run(path)]
    below = sorted({*path.glob(f"*/{JOBS}"), *path.glob(f"*/*/{JOBS}")})
    runs = [read_run(p.parent) for p in below if (p.parent / MANIFEST).is_file() or not _is_foreign_table(p)]
    if not runs and not (path / RESULTS_NAME).is_file():
        raise _not_a_run(path, f"no run folder (with {JOBS} and {MANIFEST}) and no {RESULTS_NAME} here")
    return runs


def _not_a_run(path: Path, why: str) -> InvalidInputError:
    """Return the error for a path that is not what it should be."""
    return InvalidInputError([Problem(file=str(path), line=0, column="", value="", allowed=why)])


def _read_jobs(file: Path) -> pd.DataFrame:
    """Read jobs.csv with its types.

    Text is read as str (missing is empty), counts as int64, the rest as float64.
    """
    table = read_csv(file, TEXT_COLUMNS)
    if list(table.columns) != list(JOB_COLUMNS):
        odd = sorted(set(table.columns) ^ set(JOB_COLUMNS)) or ["their order"]
        raise StateError(f"{file}: columns are not those of schema {SCHEMA_VERSION} (look at {', '.join(odd)})")
    for name in JOB_COLUMNS:
        try:
            if name not in TEXT_COLUMNS:
                table[name] = table[name].astype("int64" if name in COUNT_COLUMNS else "float64")
        except (ValueError, TypeError) as error:
            raise StateError(f"{file}: column {name}: {error}") from error
    return table


def _read_timeline(file: Path) -> dict[str, Any]:
    """Read a timeline whose columns are all there and equally long.

    Raises StateError for anything else.
    """
    try:
        timeline = parse_json(read_text(file, MAX_DOCUMENT, "a timeline"))
    except InvalidInputError as error:
        raise StateError(f"{error} (not readable as gzipped JSON)") from error
    except JsonError as error:
        raise StateError(f"{file}: not readable as gzipped JSON ({error})") from error
    shape = empty_timeline()
    if not isinstance(timeline, dict) or any(not isinstance(timeline.get(key), type(shape[key])) for key in shape):
        raise StateError(f"{file}: not a timeline of schema {SCHEMA_VERSION}")
    for part, columns in shape.items():
        if isinstance(columns, dict):
            lengths = {len(timeline[part].get(name) or []) for name in columns}
            if not set(columns) <= set(timeline[part]) or len(lengths) != 1:
                raise StateError(f"{file}: {part} has missing or ragged columns")
    return timeline
