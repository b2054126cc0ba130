"""Predictions of a measured profile against steps that it never saw.

Run by hand, no GPU needed.

    python tests/benchmarks/bench_profile.py PROFILE [--points 300]
        [--out analysis/results/profile-cpu] [--resume]

Draws random fused steps (mixed methods, ranks, lengths, 1 to 8 jobs, recompute on and off, shares
of labels) by a rule of its own, measures each one's dynamic bytes and the median of 5 interleaved
repeats of its time on this machine, and sets the profile's models, mLoRA's form and linear forms
(fitted to the PROFILE's steps, like ours) and the unfitted prior beside them. Measurements go to
steps.jsonl (not committed), which a run that was broken off goes on with (--resume).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch

from loramux_profiles.devices import load_device
from loramux_profiles.fit import time_model
from loramux_profiles.online import LogRatio
from loramux_profiles.records import ProfileRecord, read_record
from loramux_profiles.regression import errors, relative_nnls
from loramux_profiles.rivals import FORMS, form_features, prior_bytes, prior_seconds
from loramux_profiles.step_point import METHODS, AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.base_model import build_base, shape_config
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.profiler.identity import commit, describe_device, versions
from loramux_runtime.profiler.journal import Journal
from loramux_runtime.profiler.measure import Measured, measure_block
from loramux_traces.arrays import Floats
from loramux_traces.filesafe import write_csv, write_json, write_text

BLOCK: Final = 10
REPEATS: Final = 5
GOALS: Final = {"memory_mape": 0.01, "memory_worst_under": 0.02, "violations": 7, "violation": 0.02, "time_mape": 0.10}
NAMES: Final = {
    "ours": "ours",
    "mlora": "mLoRA's form",
    "tokens": "tokens only",
    "linear": "linear in all features",
    "prior": "prior, unfitted",
}
Predict = Callable[[StepPoint], float]


def held_out(n: int, seed: int) -> list[StepPoint]:
    """Random steps; ranks, expert counts and lengths are not those of the profiler's grid alone."""
    rng = np.random.default_rng([seed, 0xBE])
    found = []
    while len(found) < n:
        jobs = []
        for _ in range(rng.integers(1, 9)):
            method = str(rng.choice(METHODS))
            experts = 1 if method == "lora" else int(rng.integers(2, 9))
            targets = str(rng.choice(["all-linear", "attention", "mlp", "qv"], p=[0.55, 0.15, 0.2, 0.1]))
            if method == "mixlora":
                targets = "all-linear" if targets in ("all-linear", "attention") else "mlp"
            adapter = AdapterPoint(
                method=method,
                rank=int(rng.choice([4, 8, 12, 16, 24, 32, 64])),
                experts=experts,
                top_k=1 if method in ("lora", "loramoe") else int(rng.integers(1, min(3, experts) + 1)),
                targets=targets,
                dropout=bool(rng.random() < 0.8),
                dora=method == "lora" and bool(rng.random() < 0.15),
            )
            rows = int(rng.integers(1, 4))
            typical = float(np.exp(rng.uniform(np.log(2), np.log(250))))
            lengths = tuple(int(x) for x in np.clip(np.round(typical * rng.uniform(0.3, 1.2, rows)), 1, 300))
            room = sum(lengths) - rows
            share = 1.0 if rng.random() < 0.4 else rng.random()
            jobs.append(JobPoint(adapter=adapter, lengths=lengths, labels=min(room, max(1, round(share * room)))))
        if all(job.labels for job in jobs):
            found.append(StepPoint(jobs=tuple(jobs), recompute=bool(rng.random() < 0.4)))
    return found


def measure(record: ProfileRecord, points: Sequence[StepPoint], path: Path, *, resume: bool) -> list[Measured]:
    """Peaks and times of the points, as far as they are not in the journal."""
    model = FusedModel(build_base(shape_config(record.model.name), dtype=record.model.dtype), exact=record.exact)
    identity = {"model": record.model.name, "points": len(points)}
    with Journal(path, identity, resume=resume, force=not resume) as journal:
        found = journal.found
        if [one.point for one in found] != list(points[: len(found)]):
            sys.exit(f"{path} holds other steps; begin anew without --resume")

        def new(one: Measured) -> None:
            found.append(one)
            journal.point(len(found) - 1, one)

        left = [i for i, one in enumerate(found) if len(one.samples) < REPEATS]
        while left or len(found) < len(points):
            block = [found[i] for i in left[:BLOCK]]
            left = left[BLOCK:]
            start = len(found)
            block += [Measured(point=p) for p in points[start : start + BLOCK - len(block)]]
            measure_block(
                model,
                block,
                repeats=REPEATS,
                limit_bytes=None,
                seed=1,
                found=new,
                sampled=lambda one: journal.sample(found.index(one), one),
            )
            print(f"{len(found)} of {len(points)}", file=sys.stderr, flush=True)
        return list(found)


def fitted_form(name: str, record: ProfileRecord, what: str) -> Predict:
    """A rival's form, fitted to the profile's own steps."""
    shape = record.model.shape
    if what != "memory":
        rows = [(p.point, record.even_s(p.time)) for p in record.timed if p.time is not None]
    else:
        rows = [(p.point, float(p.memory.dynamic or 0)) for p in record.peaks]
    features = form_features(name, shape, [point for point, _ in rows])
    coefficients = relative_nnls(features, np.asarray([value for _, value in rows]))
    return lambda point: float(form_features(name, shape, [point])[0] @ coefficients)


def models(record: ProfileRecord, what: str) -> dict[str, Predict]:
    """Ours and what it is set beside, by name."""
    shape, dtype = record.model.shape, record.model.dtype
    device = load_device(record.device.name)
    found: dict[str, Predict] = {}
    if what != "memory":
        found["ours"] = time_model(record).seconds
        found["prior"] = lambda point: prior_seconds(shape, device, dtype, point)
    else:
        found["prior"] = lambda point: prior_bytes(shape, device, dtype, point)
        if record.fit is not None and record.fit.memory is not None:
            found = {"ours": memory_model(record), **found}
    return {**found, **{name: fitted_form(name, record, what) for name in FORMS}}


def memory_model(record: ProfileRecord) -> Predict:
    """Scale * walk + offset."""
    from loramux_cli.fitting import walk_of

    walk = walk_of(record)
    assert walk is not None and record.fit is not None and record.fit.memory is not None
    fit = record.fit.memory
    return lambda point: fit.scale * walk(point) + fit.offset_bytes


def report(record: ProfileRecord, found: Sequence[Measured]) -> dict[str, Any]:
    """All figures."""
    points = [one.point for one in found]
    peaks = np.asarray([float(one.memory["dynamic"]) for one in found])
    medians = np.asarray([one.median_s for one in found])
    spread = [float(np.mean(np.abs(np.asarray(one.samples) / one.median_s - 1))) for one in found]
    result: dict[str, Any] = {"schema_version": 1, "points": len(found), "goals": GOALS, "repeats": np.mean(spread)}
    assert record.anchor_s is not None
    even = np.asarray([one.median_s * record.anchor_s / (one.anchor_s or record.anchor_s) for one in found])
    result["online"] = online(record, points, medians)
    result["machine"] = float(np.median([one.anchor_s or 0.0 for one in found]) / record.anchor_s)
    for what, actual in (("memory", peaks), ("time", medians), ("even", even)):
        result[what] = {
            name: errors(actual, np.asarray([predict(point) for point in points])).to_dict()
            for name, predict in models(record, what).items()
        }
    if "ours" in result["memory"] and record.fit is not None and record.fit.memory is not None:
        margin = record.fit.memory.margin
        predict = memory_model(record)
        bound = np.asarray([(1 + margin) * predict(point) for point in points])
        over = peaks / bound - 1
        result["bound"] = {
            "margin": margin,
            "violations": int(np.sum(over > 0)),
            "worst_violation": float(max(0.0, over.max())),
            "beyond_trusted": int(sum(p.tokens > record.fit.memory.trusted_tokens for p in points)),
        }
    result["time_by_kind"] = by_kind(points, medians, time_model(record).seconds)
    return result


def by_step(record: ProfileRecord, found: Sequence[Measured]) -> pd.DataFrame:
    """A row per step: what was measured and predicted."""
    seconds = time_model(record).seconds
    memory = memory_model(record) if record.fit is not None and record.fit.memory is not None else lambda point: None
    return pd.DataFrame(
        {
            "jobs": len(one.point.jobs),
            "methods": " ".join(job.adapter.method for job in one.point.jobs),
            "tokens": one.point.tokens,
            "labels": sum(job.labels for job in one.point.jobs),
            "recompute": one.point.recompute,
            "dynamic_bytes": one.memory["dynamic"],
            "predicted_bytes": memory(one.point),
            "median_s": one.median_s,
            "low_s": min(one.samples),
            "high_s": max(one.samples),
            "anchor_s": one.anchor_s,
            "predicted_s": seconds(one.point),
        }
        for one in found
    )


def online(record: ProfileRecord, points: Sequence[StepPoint], actual: Floats) -> dict[str, float]:
    """Errors of our step times, each block's corrected by what earlier blocks took."""
    ratio = LogRatio()
    model = time_model(record)
    predicted = np.asarray([model.seconds(point) for point in points])
    corrected = np.zeros(len(points))
    for start in range(0, len(points), BLOCK):
        block = slice(start, start + BLOCK)
        corrected[block] = predicted[block] * ratio.factor
        for seconds, expected in zip(actual[block], predicted[block], strict=True):
            ratio.see(float(seconds), float(expected))
    return errors(actual, corrected).to_dict()


def by_kind(points: Sequence[StepPoint], actual: Floats, predict: Predict) -> dict[str, float]:
    """MAPE of our step times by kind of step."""
    error = np.abs(np.asarray([predict(p) for p in points]) / actual - 1)
    kinds: dict[str, Callable[[StepPoint], bool]] = {
        "recompute": lambda p: p.recompute,
        "no recompute": lambda p: not p.recompute,
        "1 or 2 jobs": lambda p: len(p.jobs) <= 2,
        "6 to 8 jobs": lambda p: len(p.jobs) >= 6,
        "up to 100 tokens": lambda p: p.tokens <= 100,
        "over 600 tokens": lambda p: p.tokens > 600,
        **{f"with {m}": lambda p, m=m: any(j.adapter.method == m for j in p.jobs) for m in METHODS},  # type: ignore[misc]
        "with dora": lambda p: any(j.adapter.dora for j in p.jobs),
    }
    chosen = {name: np.asarray([kind(p) for p in points]) for name, kind in kinds.items()}
    return {name: float(error[mask].mean()) for name, mask in chosen.items() if mask.any()}


def markdown(result: dict[str, Any], record: ProfileRecord) -> str:
    """The report as a table."""
    lines = [
        f"# {record.model.name} on {record.device.name}: {result['points']} held-out steps",
        "",
        f"Profile: {len(record.points)} steps of {record.date}, {record.device.description}, {record.device.threads} "
        f"thread; both measured by `tests/benchmarks/bench_profile.py` and `loramux profile`.",
        "",
        "| | mean error | median | worst under | worst over |",
        "|---|---:|---:|---:|---:|",
    ]
    titles = {"memory": "memory, dynamic part", "time": "step time", "even": "step time at the profile's machine speed"}
    for what, title in titles.items():
        for name, e in result[what].items():
            cells = (e["mape"], e["median"], e["worst_under"], e["worst_over"])
            lines.append(f"| {title}, {NAMES[name]} | " + " | ".join(f"{cell:.2%}" for cell in cells) + " |")
    lines.append(
        "| step time, ours with the online refit | "
        + " | ".join(f"{result['online'][key]:.2%}" for key in ("mape", "median", "worst_under", "worst_over"))
        + " |"
    )
    lines += [
        "",
        f"The reference step took {result['machine']:.3f} times as long as during the profile (median over blocks).",
    ]
    lines += ["", f"Repeats of one step are {result['repeats']:.1%} from their median in the mean."]
    if "bound" in result:
        b = result["bound"]
        lines += [
            "",
            f"The 99% bound ({b['margin']:.2%} above the prediction) was exceeded {b['violations']} times, by at most "
            f"{b['worst_violation']:.2%}.",
        ]
    lines += ["", "Our step time by kind of step, mean error:", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value:.1%} |" for name, value in result["time_by_kind"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("analysis/results/profile-cpu"))
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = read_record(options.profile)
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(record, held_out(options.points, options.seed), options.out / "steps.jsonl", resume=options.resume)
    result = report(record, found)
    about = {"device": describe_device(torch.device("cpu"), "cpu"), "versions": versions(), "commit": commit()}
    write_json(options.out / "heldout.json", {**result, **about})
    write_csv(options.out / "heldout.csv", by_step(record, found).round(6))
    text = markdown(result, record)
    write_text(options.out / "heldout.md", text)
    print(text)


if __name__ == "__main__":
    main()
