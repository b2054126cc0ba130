"""ASPEN's published figures (arXiv 2312.02515), as data.

Marks say how a figure was obtained: V read in a source, D digitised from the authors' vector
figures (about 1% accurate), I inferred.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Mark = Literal["V", "D", "I"]
GB: Final = 1e9
HOUR_S: Final = 3600.0
MARKS: Final = {"V": "read in a source", "D": "digitised from a figure, about 1%", "I": "inferred"}

MIXED, ADAPTIVE, IDENTICAL, FURTHER = "mixed", "adaptive", "identical", "further-job"
THROUGHPUT, EARLY = "throughput", "early-stop"
SEQUENTIAL, PARALLEL, ASPEN = "sequential", "parallel", "ASPEN"
M1_SORTED = "M1 fifo, sorted"
M1, M2, M3, M4, PACKED = "M1 fifo", "M2 fast-fit", "M3 minpad", "M4 adaptive", "ours, packed"

#: What each experiment is, and the system that its ratios are to (empty: absolute figures only).
EXPERIMENTS: Final = {
    MIXED: ("jobs of mixed lengths, LLaMA-7B, A100", SEQUENTIAL),
    ADAPTIVE: ("adaptive scheduling of 8 jobs (no ratio to M2: it is defined nowhere)", M3),
    IDENTICAL: ("4 identical jobs, LLaMA-7B, A100, batch 4", SEQUENTIAL),
    FURTHER: ("memory of one more job, LLaMA-7B, by batch size", ""),
    THROUGHPUT: ("tokens/s, 4 jobs", ""),
    EARLY: ("early stopping, end to end", ""),
}
#: Metric -> (what it is called, unit).
METRICS: Final = {
    "latency_h": ("end-to-end latency", "h"),
    "turnaround_h": ("mean turnaround", "h"),
    "waiting_h": ("mean waiting", "h"),
    "tokens_per_s": ("tokens/s, pads included", "tokens/s"),
    "effective_tokens_per_s": ("effective (non-pad) tokens/s", "tokens/s"),
    "memory_gb": ("GPU memory", "GB"),
}


class Published(NamedTuple):
    """A Published object is one published figure."""

    experiment: str
    system: str
    metric: str
    value: float
    mark: Mark


def _per_system(experiment: str, metric: str, mark: Mark, values: Mapping[str, float]) -> list[Published]:
    return [Published(experiment, system, metric, value, mark) for system, value in values.items()]


#: tokens/s: (sequential, parallel processes, ASPEN) by model and card; the card of those without
#: one is not stated [D].
TOKENS_PER_S: Final = {
    "LLaMA-7B A100": (608.4, 649.3, 674.6),
    "LLaMA-7B QLoRA": (903.0, 838.0, 1146.0),
    "ChatGLM2-6B": (524.0, 533.0, 642.0),
    "LLaMA-7B A6000": (505.0, 580.0, 655.0),
    "LLaMA2-7B": (501.0, 593.0, 664.0),
    "LLaMA-13B": (370.0, 368.0, 380.0),
    "LLaMA2-13B": (301.0, 287.0, 388.0),
    "LLaMA-7B RTX 4090": (593.0, 892.0, 1027.0),
}
#: GB of one more job by batch size: (ASPEN, a process of its own) [D].
FURTHER_JOB_GB: Final = {2: (1.20, 8.41), 4: (2.86, 10.86), 6: (4.27, 11.88), 8: (5.67, 12.95)}
PUBLISHED: Final[tuple[Published, ...]] = (
    *_per_system(MIXED, "latency_h", "V", {SEQUENTIAL: 27.73, M1: 36.82, M2: 39.14, M3: 22.97}),
    *_per_system(MIXED, "tokens_per_s", "V", {SEQUENTIAL: 653.0, M1: 673.0, M2: 671.0, M3: 674.0}),
    *_per_system(MIXED, "effective_tokens_per_s", "D", {SEQUENTIAL: 282.0, M1: 212.0, M2: 200.0, M3: 341.0}),
    *_per_system(MIXED, "memory_gb", "V", {SEQUENTIAL: 10.68, M1: 23.8, M2: 23.8, M3: 23.8}),
    *_per_system(ADAPTIVE, "latency_h", "D", {M2: 12.356, M3: 9.599, M4: 10.876}),
    *_per_system(ADAPTIVE, "turnaround_h", "D", {M2: 6.144, M3: 5.91, M4: 4.798}),
    *_per_system(ADAPTIVE, "waiting_h", "D", {M2: 5.899, M3: 0.15, M4: 4.488}),
    *_per_system(IDENTICAL, "latency_h", "V", {SEQUENTIAL: 10.51, PARALLEL: 9.85, ASPEN: 9.46}),
    *_per_system(IDENTICAL, "tokens_per_s", "D", {SEQUENTIAL: 608.4, PARALLEL: 649.3, ASPEN: 674.6}),
    *_per_system(IDENTICAL, "memory_gb", "D", {PARALLEL: 43.43, ASPEN: 20.56}),
    *(
        Published(FURTHER, f"{system}, batch {batch}", "memory_gb", value, "D")
        for batch, pair in FURTHER_JOB_GB.items()
        for system, value in zip((ASPEN, PARALLEL), pair, strict=True)
    ),
    *(
        Published(THROUGHPUT, f"{what}, {system}", "tokens_per_s", value, "D")
        for what, three in TOKENS_PER_S.items()
        for system, value in zip((SEQUENTIAL, PARALLEL, ASPEN), three, strict=True)
    ),
    *(
        Published(EARLY, f"{system}{how}", "latency_h", seconds / HOUR_S, "D")
        for system, pair in {SEQUENTIAL: (37.8e3, 25.4e3), PARALLEL: (35.5e3, 23.9e3), ASPEN: (34.1e3, 21.6e3)}.items()
        for how, seconds in zip(("", ", early stopping"), pair, strict=True)
    ),
)
