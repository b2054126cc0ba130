"""Import real cluster traces as jobs.

Arrivals, durations, GPU counts and users are real; the LoRA columns are drawn with a seed. No
public trace of LoRA fine-tuning jobs exists; the provenance of an imported trace says which columns
are real and which modelled. The originals are not shipped: each importer's text says where to get
one and under which licence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from loramux_traces.canonical import build_trace
from loramux_traces.errors import InvalidInputError, Problem, UsageError, printable
from loramux_traces.files import real_path
from loramux_traces.importers.common import ImportReport, RawJob, Source, longest_runs
from loramux_traces.job import JobSpec, Trace
from loramux_traces.lora_mix import DEFAULT_MIX, DRAWN, LoraMix

_MODULES: Final = {
    "philly-table": "philly_table",
    "philly-json": "philly_json",
    "helios": "helios",
    "alibaba-pai2020": "alibaba_pai2020",
    "alibaba-gpu2023": "alibaba_gpu2023",
    "acme": "acme",
    "swf": "swf",
}
SOURCES: Final = tuple(_MODULES)
_NOT_ID: Final = re.compile(r"[^A-Za-z0-9_.-]")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_PROCESSORS: Final = 100_000
#: Longest span that the schema holds, in seconds.
_MAX_SPAN_S: Final = 1e10

__all__ = ["SOURCES", "ImportReport", "RawJob", "Source", "get_source", "import_trace"]


def get_source(name: str) -> Source:
    """Return the importer of that name.

    Raises UsageError for an unknown name.
    """
    if name not in _MODULES:
        close = get_close_matches(name, _MODULES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"source {name!r} is unknown{hint} (known: {', '.join(_MODULES)})")
    source: Source = import_module(f"{__name__}.{_MODULES[name]}").SOURCE
    return source


def import_trace(
    source: str,
    paths: Path | str | Sequence[Path | str],
    *,
    seed: int = 0,
    limit: int | None = None,
    mix: LoraMix = DEFAULT_MIX,
    name: str | None = None,
    report: ImportReport | None = None,
    processors_per_gpu: int | None = None,
) -> Trace:
    """Return the jobs of an original trace as a Trace.

    Times are relative to the first job, and the LoRA columns are drawn from `mix` with `seed`. The
    order of rows in the original changes nothing. `limit` keeps the first so many jobs by
    submission. `report`, if given, is filled with how many rows were read and skipped and why.
    `processors_per_gpu` is for originals that count processors (swf); omitted, each is taken as a
    GPU. Raises InvalidInputError for a file that is not such an original or leaves no job,
    UsageError for an unknown source, a wrong number of files, or a number out of range.
    """
    original = get_source(source)
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files or (original.n_files is not None and len(files) != original.n_files):
        raise UsageError(f"{source} needs {original.files}; {len(files)} file(s) given")
    if not 0 <= seed < 2**63 or (limit is not None and limit < 1):
        raise UsageError("seed must be at least 0 and limit at least 1")
    if len({real_path(path) for path in files}) != len(files):
        raise UsageError(f"{source}: a file is given twice")
    report = ImportReport() if report is None else report
    if processors_per_gpu is not None:
        if not original.counts_processors:
            raise UsageError(f"{source} counts GPUs: --processors-per-gpu is for {', '.join(_processor_sources())}")
        if not 1 <= processors_per_gpu <= MAX_PROCESSORS:
            raise UsageError(f"processors_per_gpu must be from 1 to {MAX_PROCESSORS}, not {processors_per_gpu}")
        report.processors_per_gpu = processors_per_gpu
    raw = sorted(longest_runs(_read(original, files, report), report), key=_order)
    if not raw:
        allowed = f"leaves no job: {report}"
        raise InvalidInputError([Problem(file=str(files[0]), line=0, column="", value="", allowed=allowed)])
    if raw[-1].submit_s - raw[0].submit_s > _MAX_SPAN_S:
        allowed = f"spans more than {_MAX_SPAN_S:g} s: some submission times are wrong"
        raise InvalidInputError([Problem(file=str(files[0]), line=0, column="", value="", allowed=allowed)])
    jobs = _with_lora(source, raw[:limit], seed, mix)
    named = ", ".join(sorted(printable(path.name) for path in files))
    drawn = f"{', '.join(DRAWN)} are drawn with seed {seed} from an assumed mix"
    provenance = (
        f"{original.title} ({original.url}; licence: {original.licence}), file {named}. "
        f"REAL: {', '.join(original.real)} (times relative to the first job). "
        + (f"NOT GPUS: {_processors(report.processors_per_gpu)}. " if original.counts_processors else "")
        + f"MODELLED: {drawn}. {report}"
        + (f", first {len(jobs)} by submission" if limit is not None else "")
        + "."
    )
    return build_trace(name or source, jobs, provenance=provenance)


def _processors(count: int) -> str:
    if count == 1:
        return "the log counts processors, and num_gpus takes each of them as a GPU (--processors-per-gpu)"
    return f"the log counts processors, and num_gpus takes {count} of them as a GPU"


def _processor_sources() -> list[str]:
    return [name for name in _MODULES if get_source(name).counts_processors]


def _read(original: Source, files: Sequence[Path], report: ImportReport) -> Iterator[RawJob]:
    """Yield the jobs of all files, each with the name of its own.

    The reader sees the files together: where one log begins may depend on the others.
    Ids count within one file only: the next cluster numbers its jobs from 1 again.
    """
    together = str(files[0])  # several tables that are one original
    for job in original.read(files, report):
        yield job if job.file else job._replace(file=together)


def _order(job: RawJob) -> tuple[object, ...]:
    """Return what jobs are sorted by: submission, then file, then id.

    The rest tells apart only jobs without an id.
    """
    return (job.submit_s, Path(job.file).name, job.file, len(job.source_id), job.source_id, job)


def _ids(source: str, raw: Sequence[RawJob]) -> list[str]:
    """Return an id for each job: that of the original, then with `.2`, `.3` and so on."""
    wanted = [_NOT_ID.sub("-", job.source_id) for job in raw]
    own = set(wanted)
    uses: Counter[str] = Counter()
    ids: list[str] = []
    taken: set[str] = set()
    for i, name in enumerate(wanted):
        job_id = name
        while job_id in taken or (job_id != name and job_id in own):
            uses[name] += 1
            job_id = f"{name}.{uses[name] + 1}"
        if not _ID.fullmatch(job_id):
            job_id = f"{source}-{i:08d}"
        taken.add(job_id)
        ids.append(job_id)
    return ids


def _with_lora(source: str, raw: list[RawJob], seed: int, mix: LoraMix) -> list[JobSpec]:
    first = raw[0].submit_s
    ids = _ids(source, raw)
    jobs = []
    for job, job_id, lora in zip(raw, ids, mix.draw(seed, len(raw)), strict=True):
        row: dict[str, Any] = {
            "job_id": job_id,
            "submit_s": job.submit_s - first,
            "duration_s": job.duration_s,
            "num_gpus": job.num_gpus,
            "user": _text(job.user),
            "group": _text(job.group),
            **lora,
        }
        jobs.append(JobSpec(**row))
    return jobs


def _text(text: str) -> str:
    """Return `text` as the schema takes it: printable, at most 256 characters."""
    return text if text.isascii() and text.isprintable() and len(text) <= 256 else printable(text)[:256].strip()
