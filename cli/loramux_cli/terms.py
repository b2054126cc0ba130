"""This module defines, in a line each, the words that tables and reports print.

`-h` of a command ends with those of its own tables.
"""

from __future__ import annotations

from typing import Final

TERMS: Final[dict[str, str]] = {
    "policy": "name of the scheduling policy, with the parameters that were given",
    "seed": "number that the run's random draws come from; one seed gives one result",
    "load": "offered load: solo seconds of work that jobs bring per second and device; above 1, waiting grows",
    "runs": "simulated runs, one a seed",
    "done": "jobs completed, of all jobs",
    "turnaround": "end of a job minus its submission; mean and percentiles are over completed jobs",
    "p95, p99": "95% or 99% of the completed jobs took no longer",
    "waiting, wait": "first start of a job minus its submission",
    "makespan": "last completion minus first submission",
    "tokens/s": "tokens trained on, without pads, per second of all devices together",
    "GPU busy": "share of the devices' time in which a job was active",
    "memory peak": "most memory that one device held at any time, by the cost model where it is simulated",
    "pad %": "padding: share of the computed tokens that were pads or rounding",
    "stretch": "turnaround over the job's predicted time alone on the device",
    "rho": "finish-time fairness: turnaround over the time that a fair share of the devices would have taken",
    "low, high": "ends of the 95% interval of the mean",
    "n": "how many seeds or jobs the mean and its interval are over; the legend says which",
    "change": "the paired change against the baseline on the same jobs, in percent and in the figure's unit",
    "pairs": "seeds or jobs that both policies had",
    "over seeds": "each seed drew its own jobs; the interval says what other draws would give",
    "over jobs": "one trace, its jobs in 5 batches; the interval says what other such jobs would give",
    "fit no device": "unschedulable: one row of the job needs more memory than any device has",
    "turned away": "rejected: the policy refused the job for good",
    "real mean, simulated": "mean turnaround of the real runs, and of their simulations",
    "error": "(simulated - real) / real",
    "real spread": "half the range of the real runs' means, over the real mean",
    "jobs p90": "nine jobs in ten are simulated with a smaller error of their turnaround",
    "real p90": "the same between repeats of the real runs: no simulation can be better",
    "ok, within": "whether mean and jobs are within 5% and 15%, or within what real runs differ by",
    "mean error": "(simulated - real) / real of the mean turnaround",
    "per-job p50, p90": "half, or nine in ten, of the jobs have a smaller error",
    "MAPE": "mean absolute percentage error",
    "KS": "Kolmogorov-Smirnov distance: largest gap between two distributions, from 0 (alike) to 1",
    "Wasserstein": "how far turnarounds must move, in the mean, for one distribution to become the other",
    "tau": "Kendall's tau of two rankings: 1 the same order, -1 the reverse",
    "speed factor": "measured over predicted seconds of the fused steps",
    "steps": "optimizer steps done; of a run: fused steps",
    "loss": "mean cross entropy per learned token of the first and the last optimizer step",
    "held-out": "mean cross entropy per learned token on rows that were kept out of training, before and after it",
    "exact match": "share of held-out rows whose every learned token is the likeliest (greedy decoding would be right)",
    "token accuracy": "share of the learned tokens of held-out rows that are the likeliest",
    "fused step": "one forward and backward pass in which several jobs take part",
    "prio": "priority of the job; higher runs first",
    "state": "where the job is: waiting, running, paused, or how it ended",
    "tok/s": "tokens that the job itself trains on per second",
    "finish": "when the job is expected to end, or how long ago it did",
    "peak/bound": "most memory of a step with the job, over what admission allowed for it",
    "why": "what the job waits for, or why it ended",
    "points": "measured steps that an error is over",
    "worst under, over": "largest error of a prediction that was too low, or too high",
    "bound": "upper bound of memory: so many percent of held-out steps stay below it",
    "alone": "the job by itself on the device: a micro-batch, its memory and speed",
    "own bytes": "adapter, gradients and optimizer states of the job",
    "needs at most, at most": "upper bound of memory, the base model included; admission goes by it",
    "expected": "memory that the model expects, without the margin",
    "headroom": "memory of the device that the upper bound leaves",
    "recompute": "layers are run again in the backward pass instead of being kept: less memory, more time",
    "micro-batch": "rows of a job in one fused step",
    "rows, tokens": "rows of a micro-batch, and their tokens at the .999 quantile of lengths",
    "moments": "the two running means that AdamW keeps of each trained parameter",
}

OF_COMMAND: Final[dict[str, tuple[str, ...]]] = {
    "simulate": (
        "policy", "seed", "done", "turnaround", "p95, p99", "waiting, wait", "makespan", "tokens/s", "GPU busy",
        "memory peak", "load", "over jobs", "fit no device", "turned away", "stretch",
    ),
    "sweep": (
        "load", "policy", "runs", "done", "turnaround", "low, high", "p95, p99", "makespan", "over seeds", "over jobs",
        "fit no device", "turned away",
    ),
    "compare": (
        "load", "policy", "turnaround", "waiting, wait", "p95, p99", "makespan", "tokens/s", "pad %", "stretch", "rho",
        "low, high", "n", "change", "pairs", "over seeds", "over jobs", "mean error", "per-job p50, p90", "MAPE", "KS",
        "tau", "fit no device", "turned away",
    ),
    "plot": (
        "turnaround", "waiting, wait", "p95, p99", "makespan", "tokens/s", "pad %", "stretch", "rho", "low, high", "KS",
    ),
    "validate": (
        "real mean, simulated", "error", "real spread", "jobs p90", "real p90", "makespan", "memory peak", "ok, within",
        "KS", "Wasserstein", "tau", "speed factor",
    ),
    "train": ("steps", "loss", "turnaround", "held-out", "exact match", "token accuracy", "tokens/s", "fused step"),
    "run": ("steps", "loss", "held-out", "exact match", "tokens/s", "fused step"),
    "status": ("prio", "state", "steps", "loss", "tok/s", "finish", "peak/bound", "why", "fused step"),
    "logs": ("steps", "loss", "tokens/s", "held-out", "exact match"),
    "profile": ("points", "MAPE", "worst under, over", "bound", "fused step"),
    "fit": ("points", "MAPE", "worst under, over", "bound"),
    "estimate": ("rows, tokens", "moments", "alone", "expected", "needs at most, at most", "recompute"),
    "recommend": (
        "alone", "micro-batch", "recompute", "own bytes", "needs at most, at most", "expected", "headroom", "tokens/s",
    ),
    "evaluate": ("turnaround", "tokens/s", "pad %"),
}  # fmt: skip


def epilog(command: str) -> str | None:
    """Return the end of a command's help: what the words of its tables mean."""
    names = OF_COMMAND.get(command)
    if names is None:
        return None
    lines = [f"{name}: {TERMS[name]}." for name in names]
    return "\n\n".join(["What the figures mean", *lines])
