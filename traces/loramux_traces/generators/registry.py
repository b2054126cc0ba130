"""Define what a generator of traces is, and run one.

Each generator is a module that is found by name. It has a `Generator` object: a name, one line, a
parameter class (a frozen pydantic dataclass whose fields carry a range, a default and a
description) and a `build` that returns the jobs as mappings of columns.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError

from loramux_traces.allowed import allowed
from loramux_traces.canonical import build_trace
from loramux_traces.errors import LoramuxError, UsageError
from loramux_traces.file_model import faults
from loramux_traces.job import JobSpec, Trace
from loramux_traces.job_types import Method
from loramux_traces.lora_mix import parse_shares
from loramux_traces.parse_rows import Check, epoch_times

MAX_JOBS: Final = 10_000_000
_ANY_JOB: Final[dict[str, Any]] = {
    "job_id": "a", "submit_s": 0, "method": "lora", "batch_size": 1, "seq_len": 1, "total_steps": 1,
}  # fmt: skip
"""What a job needs beside the name of its model, which is asked about alone."""
_ALIASES: Final = {"load": "rho", "rho": "load"}


@dataclass(frozen=True, slots=True)
class Generator:
    """A Generator makes one kind of synthetic trace.

    `build(params, jobs, seed)` returns (rows of columns, how they were made).
    """

    name: str
    summary: str
    params: type[Any]
    build: Callable[[Any, int, int], tuple[Sequence[Mapping[str, Any]], str]]
    default_jobs: int = 1000

    def defaults(self) -> dict[str, Any]:
        """Return the default of each parameter."""
        return {f.name: _default(f) for f in fields(self.params)}

    def help(self) -> list[tuple[str, Any, str]]:
        """Return (parameter, default, description) for each parameter."""
        properties = TypeAdapter(self.params).json_schema()["properties"]
        return [(name, default, properties[name].get("description", "")) for name, default in self.defaults().items()]

    def make_params(self, given: Mapping[str, Any]) -> Any:
        """Return the validated parameters (texts are converted).

        Raises UsageError that names the parameter at fault.
        """
        known = self.defaults()
        values: dict[str, Any] = {}
        for given_name, value in given.items():
            name = given_name.replace("-", "_")
            if name not in known and _ALIASES.get(name) in known:
                name = _ALIASES[name]
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UsageError(
                    f"{self.name} has no parameter {given_name!r}{hint} (it has {', '.join(known) or 'none'})"
                )
            if name in values and values[name] != value:
                raise UsageError(f"{self.name}: {name} is given twice, as {values[name]!r} and as {value!r}")
            values[name] = value
        try:
            return TypeAdapter(self.params).validate_python(values)
        except ValidationError as error:
            said = (f"{self.name}{' ' if fault.place else ': '}{fault}" for fault in faults(error, values))
            raise UsageError("\n".join(said)) from None


def _default(parameter: Field[Any]) -> Any:
    value = parameter.default
    if value is MISSING:
        return None
    return getattr(value, "default", value)


def _shown(value: Any) -> str:
    return shlex.quote(f"{value:.12g}" if isinstance(value, float) else str(value))


def command(generator: Generator, params: Any, jobs: int, seed: int) -> str:
    """Return the command that makes this trace again.

    Parameters at their defaults are left out.
    """
    words = ["loramux trace generate --kind", generator.name, "--jobs", str(jobs), "--seed", str(seed)]
    for name, default in generator.defaults().items():
        value = getattr(params, name)
        if value != default:
            words += ["--set", f"{name}={_shown(value)}"]
    return " ".join(words)


def _names(parameters: Any, *columns: str) -> list[tuple[str, str]]:
    """Return (parameter, name) of every model or method that the parameters list, drawn or not."""
    found = []
    for column in columns:
        text = getattr(parameters, column, "")
        shares = parse_shares(text) if text and column.endswith("s") else ((text, 1.0),) if text else ()
        found += [(column, share[0]) for share in shares]
    return found


def _check_names(kind: str, parameters: Any, check: Check | None) -> None:
    """Raise UsageError for a name that no reader of the trace would take."""
    methods = get_args(Method)
    for parameter, method in _names(parameters, "method", "methods"):
        if method not in methods:
            close = get_close_matches(method.lower(), methods, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{kind} {parameter}: {method[:80]!r} is no method{hint} (known: {', '.join(methods)})")
    for parameter, model in _names(parameters, "base_model", "bases"):
        try:
            wrong = check(JobSpec(base_model=model, **_ANY_JOB)) if check is not None else ()
        except ValidationError:
            raise UsageError(f"{kind} {parameter}: {model[:80]!r}: {allowed('base_model')}") from None
        for _, _, said in wrong:
            raise UsageError(f"{kind} {parameter}: {said}")


def run(
    generator: Generator,
    jobs: int | None,
    seed: int,
    given: Mapping[str, Any],
    name: str | None,
    check: Check | None = None,
) -> Trace:
    """Make the trace with this generator; whatever it makes, the reader of traces takes.

    `check` is that reader's own. Raises UsageError for a bad parameter, name, number of jobs or
    seed.
    """
    count = generator.default_jobs if jobs is None else jobs
    if type(count) is not int or not 1 <= count <= MAX_JOBS:
        raise UsageError(f"jobs must be a whole number from 1 to {MAX_JOBS}, not {str(count)[:80]}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise UsageError(f"seed must be a whole number from 0 to {2**63 - 1}, not {seed}")
    params = generator.make_params(given)
    _check_names(generator.name, params, check)
    rows, origin = generator.build(params, count, seed)
    built = []
    for row in rows:
        try:
            built.append(JobSpec(**row))
        except ValidationError as error:
            raise UsageError(f"{generator.name}: these parameters give a job with {faults(error, row)[0]}") from error
    if epoch_times([job.submit_s for job in built]):
        raise UsageError(f"{generator.name}: these parameters give a gap between jobs that looks like a calendar time")
    provenance = f"MODELLED, not measured: {origin} Made by: {command(generator, params, len(built), seed)}"
    try:
        return build_trace(name or generator.name, built, provenance=provenance)
    except LoramuxError as error:
        raise UsageError(f"{generator.name}: {error}") from error
