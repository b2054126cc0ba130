"""Read run folders and sweeps as tidy tables: one row a run, one row a job.

Labels tell the runs apart, and a line says where they come from.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from loramux_analysis.metrics import fairness_figures, n_devices
from loramux_traces.errors import InvalidInputError, Problem
from loramux_traces.files import real_path
from loramux_traces.filesafe import read_json_object
from loramux_traces.results import UNSCHEDULABLE
from loramux_traces.runfolder import MANIFEST, SUMMARY, Run, find_runs
from loramux_traces.tidy import FAILED_COLUMN, RESULTS_NAME, flatten_summary, read_results

#: Settings that, where they differ between runs of one policy, become part of its label.
_SETTINGS: Final = (
    "kind", "fidelity", "fusion", "ideal", "speedup_curve", "max_resident", "prediction_error", "multi_gpu",
    "row_order", "warmup", "profile_sha256", "devices",
)  # fmt: skip
#: Worst first: a figure is no better known than the least known cost it came from.
_ORIGINS: Final = ("unknown", "assumed", "modelled", "fitted", "measured")


@dataclass(frozen=True)
class Results:
    """A Results object holds what was read.

    `table` has one row a run (of run folders and of results.csv files); `runs` only those with
    their jobs. Columns of `table`: `policy` (the label), `name` (the policy alone), `kind`, `load`,
    `seed`, `pair` (equal for runs of the same jobs: trace, load and seed), `trace` (equal for runs
    of the same jobs whatever the seed; empty where nobody knows), then the figures. `labels` are
    those of `runs`, in their order. `failed`: a line for each run that a policy's fault ended.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    table: pd.DataFrame
    manifests: tuple[dict[str, Any], ...]
    failed: tuple[str, ...] = ()

    @cached_property
    def policies(self) -> list[str]:
        """Labels in the order in which charts show them.

        The best mean turnaround is first (at the highest load).
        """
        top = self.at_load(self.loads[-1]) if self.loads else self.table
        first = ranked(top)
        return first + [label for label in ranked(self.table) if label not in first]

    @property
    def loads(self) -> list[float]:
        """The loads of a sweep, ascending (empty when nothing says its load)."""
        return sorted(float(load) for load in self.table["load"].dropna().unique())

    @property
    def groups(self) -> list[float | None]:
        """The loads, ascending, with None at the end where runs say none."""
        return [*self.loads, *([None] if self.table["load"].isna().any() else [])]

    def at_load(self, load: float | None) -> pd.DataFrame:
        """Return the rows of one load; None: those that say none."""
        return self.table[self.table["load"].isna() if load is None else self.table["load"] == load]

    @cached_property
    def one_per_policy(self) -> dict[str, Run]:
        """The run of the lowest seed of each policy, for charts that show one run."""
        chosen: dict[str, Run] = {}
        for run, label in sorted(zip(self.runs, self.labels, strict=True), key=lambda pair: pair[0].seed):
            chosen.setdefault(label, run)
        return {label: chosen[label] for label in self.policies if label in chosen}

    def jobs(self) -> pd.DataFrame:
        """Return all job rows with `policy`, `seed` and `pair` of their run."""
        pairs = [pair_of(run.manifest) for run in self.runs]
        parts = [
            run.jobs.assign(policy=label, seed=run.seed, pair=pair)
            for run, label, pair in zip(self.runs, self.labels, pairs, strict=True)
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["policy", "seed", "pair"])

    def about(self, *runs: Run) -> str:
        """Return one line for the foot of a chart or table.

        It says whether the figures are simulated or measured, how well the costs are known, and
        which trace was used.
        """
        return describe([run.manifest for run in runs] or self.manifests)


def load(paths: Sequence[Path]) -> Results:
    """Read run folders, folders of runs and sweep folders, each run once.

    Raises InvalidInputError for a path that is none of these or when nothing was found, StateError
    when a file is corrupt.
    """
    runs: dict[Path, Run] = {}
    tables: list[pd.DataFrame] = []
    manifests: list[dict[str, Any]] = []
    in_sweep: set[Path] = set()
    failed: list[str] = []
    for path in {real_path(p): Path(p) for p in paths}.values():
        found = find_runs(path)
        runs.update({real_path(run.path): run for run in found})
        if (path / RESULTS_NAME).is_file():
            about = _sweep_manifest(path)
            swept, lines = _without_failed(read_results(path), path)
            failed += lines
            tables.append(_swept(swept, about, path))
            in_sweep.update(real_path(run.path) for run in found)
            manifests.append(about)
        else:
            failed += _failed_beside(path)
    kept = tuple(runs.values())
    labels = label_runs(kept)
    alone = [(run, label) for run, label in zip(kept, labels, strict=True) if real_path(run.path) not in in_sweep]
    tables.append(pd.DataFrame([_row(run, label) for run, label in alone]))
    of_runs = {str(run.path) for run, _ in alone}
    table = pd.concat([t for t in tables if len(t)], ignore_index=True) if any(map(len, tables)) else pd.DataFrame()
    if table.empty:
        where = ", ".join(str(p) for p in paths) or "."
        lack = "; ".join(["holds no finished run", *failed])
        raise InvalidInputError([Problem(file=where, line=0, column="", value="", allowed=lack)])
    for column in ("load", "seed", "turnaround_mean_s"):
        table[column] = pd.to_numeric(table[column]) if column in table.columns else np.nan
    if "kind" not in table.columns:
        table["kind"] = "simulated"
    table["kind"] = table["kind"].fillna("simulated")
    sources = {str(path): _sources(Path(path), of_run=path in of_runs) for path in table["source"].unique()}
    table["policy"] = _told_apart(table, [sources[path] for path in table["source"]])
    told = dict(zip(table["source"], table["policy"], strict=True))
    labels = [told.get(str(run.path), label) for run, label in zip(kept, labels, strict=True)]
    return Results(kept, tuple(labels), table, (*manifests, *(run.manifest for run in kept)), tuple(failed))


def ranked(table: pd.DataFrame) -> list[str]:
    """Return the labels of a table's rows, the best mean turnaround first."""
    means = table.groupby("policy", sort=True)["turnaround_mean_s"].mean()
    return [str(label) for label in means.sort_values(kind="stable", na_position="last").index]


def _row(run: Run, label: str) -> dict[str, Any]:
    """Return one run as a row of figures."""
    return {
        **flatten_summary(run.summary),
        **fairness_figures(run.jobs, n_devices(run)),
        "policy": label,  # set after the summary, whose policy lacks what tells this run from others
        "name": run.policy,
        "kind": run.manifest.get("kind", "simulated"),
        "load": run.manifest.get("load"),
        "offered_load": run.manifest.get("offered_load"),
        "seed_redraws": "; ".join(run.manifest.get("seed_redraws") or ()),
        "unfit_jobs": " ".join(run.jobs[run.jobs["final_state"] == UNSCHEDULABLE]["job_id"].astype(str)[:5]),
        "seed": run.seed,
        "pair": pair_of(run.manifest),
        "trace": _digest(run.manifest),
        "made_as": _made_as(run.manifest),
        "source": str(run.path),
    }


def pair_of(manifest: dict[str, Any]) -> str:
    """Return a text that is equal for runs that were given the same jobs with the same draws."""
    return f"{_digest(manifest)}/{manifest.get('load') or ''}/{manifest.get('seed') or 0}"


_DRAW: Final = re.compile(r" --seed \d+")


def _made_as(manifest: dict[str, Any]) -> str:
    """Return what is equal for draws of one kind of trace, and for runs of one fixed trace."""
    trace = manifest.get("trace")
    said = str(trace.get("provenance", "")) if isinstance(trace, dict) else ""
    return _DRAW.sub("", said) if "modelled" in said.lower() else _digest(manifest)


def _digest(manifest: dict[str, Any]) -> str:
    """Return what names the jobs of a run; empty where nothing does."""
    trace = manifest.get("trace")
    return str(trace.get("sha256", "")) if isinstance(trace, dict) else ""


def _swept(table: pd.DataFrame, manifest: dict[str, Any], path: Path) -> pd.DataFrame:
    """Return a sweep's rows with their labels, pairs and traces.

    Its trace is one and the same, or drawn anew for each seed.
    """
    digest = _digest(manifest)
    drawn = manifest.get("trace") if isinstance(manifest.get("trace"), dict) else {}
    made = f"{drawn.get('generated')}{drawn.get('parameters')}" if drawn and "generated" in drawn else ""
    loads = table["load"] if "load" in table.columns else pd.Series("", index=table.index)
    rows = list(zip(loads, table["seed"], strict=True))
    return table.assign(
        policy=swept_labels(table),
        name=table["policy"],
        pair=[f"{digest or made}/{load}/{seed}" for load, seed in rows],
        trace=[digest or (f"{made}/{seed}" if made else "") for _, seed in rows],
        made_as=made or _made_as(manifest),
        source=str(path),
    )


def _without_failed(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return a sweep's rows without those that a policy's fault ended, and a line a policy."""
    if FAILED_COLUMN not in table.columns:
        return table, []
    said = table[FAILED_COLUMN].fillna("").astype(str)
    lost = table[said != ""]
    lines = []
    for policy, rows in lost.groupby("policy", sort=False):
        error = str(rows[FAILED_COLUMN].iloc[0])
        lines.append(f"{path}: {policy} failed in {len(rows)} of its runs: {error}")
    return table[said == ""].drop(columns=FAILED_COLUMN), lines


def _failed_beside(path: Path) -> list[str]:
    """Return a line for each policy that failed in the command which wrote this folder of runs."""
    file = path / SUMMARY
    found = read_json_object(file).get("policy_errors") if file.is_file() else None
    rows = found if isinstance(found, list) else []
    lines = [f"{path}: {row.get('policy')} failed: {row.get('error')}" for row in rows if isinstance(row, dict)]
    return list(dict.fromkeys(lines))  # seeds often fail alike


def _told_apart(table: pd.DataFrame, sources: Sequence[Sequence[str]]) -> list[str]:
    """Return the labels, with the folder where simulations of one label would pass for seeds.

    That is where they have the same load and seed (on other jobs, or by other code), or traces that
    are not draws of one kind. Real runs are repeats of each other. `sources`: for each row what it
    may be told apart by, the shortest first.
    """
    columns = ["policy", "load", "seed", "kind", "made_as", "at"]
    rows = table.assign(load=table["load"].fillna(-1.0), at=range(len(table)))[columns]
    labels = [str(label) for label in rows["policy"]]
    drawn = rows[rows["kind"] != "real"]
    for label, part in drawn.groupby("policy", sort=False):
        if not part.duplicated(["load", "seed"]).any() and part["made_as"].nunique() == 1:
            continue
        for choice in range(min(len(sources[at]) for at in part["at"])):
            names = [sources[at][choice] for at in part["at"]]
            named = part.assign(source=names)
            kinds = named.groupby("source")["made_as"].nunique()
            if not named.duplicated(["load", "seed", "source"]).any() and kinds.max() == 1:
                break
        for at, name in zip(part["at"], names, strict=True):
            labels[at] = f"{label} [{name}]"
    return labels


def _sources(path: Path, *, of_run: bool) -> tuple[str, ...]:
    """Return the texts that a run or a sweep may be told apart by, the shortest first."""
    near = real_path(path)
    own = (near.name, "/".join(near.parts[-2:]), str(near))
    return (near.parent.name, "/".join(near.parts[-3:-1]), *own) if of_run else own


def _sweep_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a sweep folder.

    It is empty when there is none: the footer then says that the origin is unknown.
    """
    file = path / MANIFEST
    return read_json_object(file) if file.is_file() else {}


def spec(name: str, params: dict[str, Any]) -> str:
    """Return a policy as `--policy` takes it: `aspen:candidates=60,k=8`."""
    return f"{name}:{','.join(f'{key}={value}' for key, value in sorted(params.items()))}" if params else name


def label_runs(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run.

    It is the run's policy, with only those parameters and settings that differ between runs of that
    policy.
    """
    labels = []
    for run in runs:
        peers = [other for other in runs if other.policy == run.policy]
        params = _params(run)
        differing = {
            key: value for key, value in params.items() if any(_params(other).get(key) != value for other in peers)
        }
        settings = [
            _setting(key, _said(run, key))
            for key in _SETTINGS
            if any(_said(other, key) != _said(run, key) for other in peers)
        ]
        labels.append(" ".join([spec(run.policy, differing), *(f"({text})" for text in settings if text)]))
    return labels


def _said(run: Run, key: str) -> Any:
    """Return a setting of a run: of its manifest, or of the options in it."""
    options = run.manifest.get("options")
    return run.manifest.get(key, options.get(key) if isinstance(options, dict) else None)


def _params(run: Run) -> dict[str, Any]:
    """Return the parameters of a run's policy; a text is taken as one parameter."""
    params = run.manifest.get("policy_params") or {}
    return params if isinstance(params, dict) else {"params": params}


def _setting(key: str, value: Any) -> str:
    """Return a setting in a few letters."""
    if isinstance(value, bool):
        return key if value else f"not {key}"
    if key in ("max_resident", "prediction_error", "warmup"):
        return f"{key.replace('_', '-')} {value}"
    if key == "devices":
        count = len(value) if isinstance(value, list) else value
        return "one device" if count == 1 else f"{count} devices"
    return str(value)[:8] if key == "profile_sha256" else str(value)


def swept_labels(table: pd.DataFrame) -> list[str]:
    """Return labels of a sweep's rows, with parameters only where one policy has several."""
    if "params" not in table.columns:
        return [str(policy) for policy in table["policy"]]
    several = table.groupby("policy")["params"].transform("nunique") > 1
    rows = zip(table["policy"], table["params"], several, strict=True)
    return [f"{policy}:{params}" if more and params else str(policy) for policy, params, more in rows]


def describe(manifests: Sequence[dict[str, Any]]) -> str:
    """Return one line that says where figures come from.

    For example `simulated, costs assumed; trace: sample.csv, modelled; rate`.
    """
    kinds = sorted({str(m.get("kind", "simulated")) for m in manifests if m}) or ["simulated"]
    origins = {str(m.get("origin", "unknown")) for m in manifests} or {"unknown"}
    worst = min(origins, key=lambda o: _ORIGINS.index(o) if o in _ORIGINS else 0)
    how = " and ".join("measured" if kind == "real" else kind for kind in kinds)
    costs = "" if kinds == ["real"] else f", costs {worst}"
    traces = [m["trace"] for m in manifests if isinstance(m.get("trace"), dict)]
    names = _few({_trace_text(trace) for trace in traces})
    settings = [_few({str(m[key]) for m in manifests if m.get(key)}) for key in ("fidelity", "fusion")]
    ideal = ["ideal (no overheads)"] if any(m.get("ideal") for m in manifests) else []
    parts = [how + costs, f"trace: {names or 'unknown'}", ", ".join([*filter(None, settings), *ideal])]
    return "; ".join(part for part in parts if part)


def _trace_text(trace: dict[str, Any]) -> str:
    """Return a trace's file name and where its jobs come from.

    That is the start of the provenance, which says measured or modelled.
    """
    name = Path(str(trace.get("name", ""))).name
    provenance = textwrap.shorten(str(trace.get("provenance") or "provenance unknown"), 80, placeholder=" …")
    return ", ".join(part for part in (name, provenance) if part)


def _few(texts: set[str]) -> str:
    """Return up to two texts, and how many more there are."""
    shown = sorted(texts)
    return " / ".join(shown[:2]) + (f" and {len(shown) - 2} more" if len(shown) > 2 else "")
