"""The fused steps that the suite profiles are in `points.jsonl`.

They are drawn once where SciPy is, and read where only torch is.

`python -m gpu.points` writes the file again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Final

from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint

FILE: Final = Path(__file__).with_name("points.jsonl")
COUNT: Final = 152
SEED: Final = 0
FEWEST_TOKENS: Final = 64
"""Below it a GPU's step is all launches, which the others' intercepts tell too."""
MOST: Final[dict[str, int]] = {"rows": 6, "length": 2048, "tokens": 16_384, "layers": 22}
"""Limits of the draw; the fewest layers of the models. Of LLaMA-7B's steps one in fifteen is then
above 80 GB.
"""


def drawn_points() -> list[StepPoint]:
    """Draw the steps, space-filling and random (`profiler.grid.draw`). Needs SciPy.

    Any prefix of them covers everything and is exchangeable with what comes after it.
    """
    from loramux_runtime.profiler.grid import Limits, draw

    wide = (point for point in draw(Limits(**MOST), seed=SEED) if point.tokens >= FEWEST_TOKENS)
    return list(islice(dict.fromkeys(islice(wide, 2 * COUNT)), COUNT))


def points_text(points: list[StepPoint]) -> str:
    """One step a line; of an adapter only what is not the default."""
    return "".join(json.dumps(_brief(point), separators=(",", ":")) + "\n" for point in points)


def load_points() -> list[StepPoint]:
    """The steps of the file, in the order in which they are measured."""
    return [StepPoint.from_dict(json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def shrunk(point: StepPoint) -> StepPoint:
    """A step of the same kind that a CPU runs in no time on a model of two layers."""
    jobs = []
    for job in point.jobs[:2]:
        experts = job.adapter.experts
        adapter = dataclasses.replace(job.adapter, experts=experts if isinstance(experts, int) else experts[:2])
        lengths = tuple(2 + n % 11 for n in job.lengths[:2])
        jobs.append(JobPoint(adapter=adapter, lengths=lengths, labels=min(job.labels, sum(lengths) - len(lengths))))
    return dataclasses.replace(point, jobs=tuple(jobs))


def _brief(point: StepPoint) -> dict[str, Any]:
    document = point.to_dict()
    defaults = {f.name: f.default for f in dataclasses.fields(AdapterPoint)}
    for job in document["jobs"]:
        job["adapter"] = {name: value for name, value in job["adapter"].items() if value != defaults[name]}
    return document


if __name__ == "__main__":
    FILE.write_text(points_text(drawn_points()), encoding="utf-8")
    sys.stdout.write(f"wrote {FILE}\n")
