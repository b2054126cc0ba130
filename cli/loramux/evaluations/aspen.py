"""This module simulates ASPEN's published evaluation (arXiv 2312.02515).

It stands beside what the authors report. What is assumed is in `ASSUMPTIONS`, and goes into the
report. Nothing here is tuned to a published latency. `loramux evaluate aspen` runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from loramux_analysis import aspen_evaluation as a
from loramux_analysis import aspen_published as p
from loramux_analysis.aspen_evaluation import Ours
from loramux_profiles.devices import load_device
from loramux_profiles.prior_report import authors_tokens_per_row, memory_rows, throughput_rows
from loramux_simulator.api import simulate
from loramux_simulator.run import RunResult
from loramux_traces.canonical import build_trace
from loramux_traces.errors import LoramuxError
from loramux_traces.generators import generate
from loramux_traces.generators.aspen8 import DATASETS
from loramux_traces.job import JobSpec, Trace

RowOrder = Literal["shuffled", "sorted"]
DEVICE: Final = "aspen-a100-80g"
EPOCHS: Final = 3
"""num_epochs of the released configuration (config/finetune.json).

The generator's mean lengths are divided by it, so that the non-pad tokens stay the 28.15 million
that the authors' hours and effective rates agree on.
"""
ALPACA_LEN, SQL_LEN = 200.0, 470.0
RANK: Final = 8
TARGETS: Final = "qv"
IDENTICAL_ROWS: Final = 52_002
"""Rows of the public Alpaca set."""
ARRIVAL_GAP_S: Final = 1e-3
FILES: Final = (
    "manifest.json", "evaluation.md", "evaluation.csv", "sensitivity.csv",
    *(f"aspen_{name}.{ending}" for name in ("mixed", "systems", "memory") for ending in ("png", "svg", "csv")),
)  # fmt: skip

ASSUMPTIONS: Final = (
    "System: profile `aspen-a100-80g` (8-bit base, eager kernels). Its two time constants and the curve of parallel "
    "processes are fitted to LLaMA-7B's 608.4 / 649.3 / 674.6 tokens/s on equal lengths; nothing is fitted to mixed "
    "lengths.",
    f"Workload: the 8 jobs' row counts are published. Batch 4, rank {RANK} on q and v (inferred, as the profile). "
    f"{EPOCHS} epochs are the released configuration's. Mean lengths {ALPACA_LEN / EPOCHS:.0f} (Alpaca) and "
    f"{SQL_LEN / EPOCHS:.0f} (SQL) tokens keep 28.15 million non-pad tokens in all (inferred from published hours x "
    "effective tokens/s); how they split, and the shapes of the two distributions, are assumed. That the published "
    "mixed run and the 8 jobs are one workload is assumed too.",
    "Order of arrival: as listed, learning rate by learning rate, 1 ms apart (assumed). K = 4 jobs in a step, as in "
    "the authors' 4-job figures; minpad and aspen choose among all 8 (assumed; the released default is 2 out of 4).",
    "Row order: sequential, parallel and fifo shuffle; minpad and aspen take each job's rows longest first. So does "
    "the released code (dispatcher.py: MinPad takes the first row for the longest, and its comment says that it must "
    "sort), and the published tokens agree: 22.97 h x 674 tokens/s under M3 are fewer than 27.73 h x 653 tokens/s "
    "sequentially, which fusing the same micro-batches cannot give, since each is padded at least to its own longest "
    "row. That sequential and fifo shuffle is inferred from this, for the code sorts or shuffles by an option of the "
    "job; that M4 sorts is assumed. The last table shows every other combination.",
    "Ours, packed: policy aspen with K = 8 on loramux's padding-free steps, shuffled rows, the same costs.",
    "Memory of mixed lengths is what admission reserves: the expected peak at the .999 quantile of lengths, with our "
    "runtime's activations, of all residents at once (4 under fifo, 8 under minpad and aspen, though only 4 are in a "
    "step). Memory by batch size is that of the authors' implementation (dropout kept, full logits) at the "
    "tokens a row that fit their four points.",
    "Rate fidelity: rows are always shuffled, and separate processes count no pads.",
)
WHY: Final = (
    "Why: where every system shuffles, sequential wins over K = 4. A fused batch is padded to the longest of 16 rows "
    "in place of 4, and a window of 4 out of 8 jobs (fewer as jobs end) does not win that back: fusing saves the part "
    "of a step that does not grow with tokens, about a tenth of the time at these lengths, and costs a quarter more "
    "computed tokens. Sorting removes the padding inside micro-batches, which is what the published M3 shows. With "
    "K = 2 out of 8, MinPad also beats a sequential run that sorts."
)


@dataclass(frozen=True)
class Workload:
    """Describes the 8 jobs, with what may be varied."""

    epochs: int = EPOCHS
    listed_order: bool = True
    """Whether arrivals are as listed; else they are by id (all Alpaca jobs first)."""
    scale: float = 1.0
    """Number that the rows of every job are divided by."""
    seed: int = 0

    def trace(self) -> Trace:
        """Return the jobs as a trace."""
        made = generate(
            "aspen-8", epochs=self.epochs, alpaca_len=ALPACA_LEN / self.epochs, sql_len=SQL_LEN / self.epochs,
            seed=self.seed,
        )  # fmt: skip
        listed = [f"{name}-lr{i}" for i in (1, 2) for name, _, _ in DATASETS]
        jobs = []
        for job in made.jobs:
            submit_s = listed.index(job.job_id) * ARRIVAL_GAP_S if self.listed_order else 0.0
            rows = max(1, round((job.num_samples or 0) / self.scale))
            jobs.append(replace(job, submit_s=submit_s, num_samples=rows, rank=RANK, target_modules=TARGETS))
        return build_trace("aspen-8", jobs, provenance=made.provenance)


@dataclass
class Bench:
    """Runs simulations once each and remembers them."""

    fidelity: str = "step"
    tell: Callable[[str], None] = lambda _: None
    _done: dict[tuple[Any, ...], RunResult] = field(default_factory=dict)

    def run(self, workload: Workload, policy: str, order: RowOrder, fusion: str = "padded") -> RunResult:
        """Run one policy on one workload; in rate fidelity rows are always shuffled."""
        order = "shuffled" if self.fidelity == "rate" else order
        key = (workload, policy, order, fusion)
        if key not in self._done:
            self.tell(f"{policy}, {fusion}, rows {order}, {workload.epochs} epochs, seed {workload.seed}")
            self._done[key] = self.simulate(workload.trace(), policy, order, fusion, workload.seed)
        return self._done[key]

    def simulate(self, trace: Trace, policy: str, order: RowOrder, fusion: str, seed: int) -> RunResult:
        """Simulate one run on the authors' A100."""
        result = simulate(
            trace, policy, devices=[load_device(DEVICE)], fidelity=self.fidelity, fusion=fusion, seed=seed,
            row_order=order, timeline=False,
        )  # fmt: skip
        if result.summary["completed"] != len(trace):
            raise LoramuxError(f"{policy}: {result.summary['completed']} of {len(trace)} jobs completed")
        return result


def policies(k: int, candidates: int) -> dict[str, tuple[str, RowOrder]]:
    """Return each system's policy and row order as the authors ran it."""
    return {
        p.SEQUENTIAL: ("exclusive", "shuffled"),
        p.PARALLEL: (f"separate:k={k}", "shuffled"),
        p.M1: (f"aspen-fifo:k={k},residents={k}", "shuffled"),
        p.M3: (f"aspen-minpad:k={k},residents={candidates}", "sorted"),
        p.M4: (f"aspen:k={k},residents={candidates}", "sorted"),
    }


def mixed(bench: Bench, workload: Workload) -> tuple[list[Ours], list[dict[str, Any]]]:
    """Return the figures and the runs of the systems on the 8 jobs."""
    chosen = [(system, policy, order, "padded") for system, (policy, order) in policies(4, 8).items()]
    chosen.append((p.M1_SORTED, policies(4, 8)[p.M1][0], "sorted", "padded"))
    chosen.append((p.PACKED, "aspen:k=8", "shuffled", "packed"))
    figures: list[Ours] = []
    runs = []
    for system, policy, order, fusion in chosen:
        result = bench.run(workload, policy, order, fusion)
        if system != p.M1_SORTED:
            figures += a.figures_of(p.MIXED, system, result.summary, "context")
        if system in (p.M1, p.M1_SORTED, p.M3, p.M4):
            figures += a.figures_of(p.ADAPTIVE, system, result.summary, "context")
        summary = {key: value for key, value in result.summary.items() if "wall" not in key}
        runs.append(
            {"system": system, "policy": policy, "row_order": order if bench.fidelity == "step" else "shuffled",
             "fusion": fusion, "fidelity": bench.fidelity, "seed": result.seed, "origin": result.origin, **summary}
        )  # fmt: skip
    return figures, runs


def identical(bench: Bench, scale: float = 1.0) -> list[Ours]:
    """Return the figures of four equal jobs; hours are of the unscaled rows.

    The jobs have the tokens a row that the authors' memory figures give.
    """
    rows = max(4, round(IDENTICAL_ROWS / scale))
    jobs: list[JobSpec] = [
        JobSpec(
            job_id=f"job-{i}", submit_s=0.0, base_model="llama-7b", method="lora", batch_size=4, micro_batch_size=4,
            seq_len=authors_tokens_per_row(), length_dist="constant", num_samples=rows, epochs=1.0, rank=RANK,
            target_modules="qv",
        )
        for i in range(4)
    ]  # fmt: skip
    trace = build_trace("aspen-identical", jobs)
    figures: list[Ours] = []
    wanted = {"latency_h", "tokens_per_s"}
    for system, policy in ((p.SEQUENTIAL, "exclusive"), (p.PARALLEL, "separate:k=4"), (p.ASPEN, "aspen:k=4")):
        bench.tell(f"{policy}, 4 identical jobs")
        result = bench.simulate(trace, policy, "shuffled", "padded", 0)
        found = [f for f in a.figures_of(p.IDENTICAL, system, result.summary, "fit") if f.metric in wanted]
        figures += [
            f._replace(value=f.value * IDENTICAL_ROWS / rows, kind="context") if f.metric == "latency_h" else f
            for f in found
        ]
    return figures


def modelled() -> list[Ours]:
    """Return memory by batch size and tokens/s by model, from the cost model's own report."""
    systems = {"one more job, shared base, batch ": p.ASPEN, "own process, batch ": p.PARALLEL}
    four = {"4 jobs, shared base, batch 4": p.ASPEN, "4 jobs, own processes, batch 4": p.PARALLEL}
    ways = {" sequential": p.SEQUENTIAL, " 4 processes": p.PARALLEL, " ASPEN, 4 jobs": p.ASPEN}
    figures: list[Ours] = []
    for row in memory_rows():
        for start, system in systems.items():
            if row.what.startswith(start):
                what = f"{system}, batch {row.what.removeprefix(start)}"
                figures.append(a.Ours(p.FURTHER, what, "memory_gb", row.ours, row.kind))
        if row.what in four:
            figures.append(a.Ours(p.IDENTICAL, four[row.what], "memory_gb", row.ours, row.kind))
    for row in throughput_rows():
        for ending, system in ways.items():
            name = row.what.removesuffix(ending)
            name = "LLaMA-7B A100" if name == "LLaMA-7B" else name
            if row.what.endswith(ending) and name in p.TOKENS_PER_S:
                figures.append(a.Ours(p.THROUGHPUT, f"{name}, {system}", "tokens_per_s", row.ours, row.kind))
    return figures


def sensitivity(bench: Bench, workload: Workload) -> pd.DataFrame:
    """Return hours under other row orders, K, candidates, lengths, arrivals and seeds.

    The table also says which order comes out.
    """
    long = replace(workload, epochs=1)
    cases: list[tuple[str, Workload, str, int, int]] = [
        ("as above", workload, "as released", 4, 8),
        ("everybody shuffles", workload, "shuffled", 4, 8),
        ("everybody sorts", workload, "sorted", 4, 8),
        ("released K", workload, "as released", 2, 4),
        ("released K, everybody shuffles", workload, "shuffled", 2, 4),
        ("released K, everybody sorts", workload, "sorted", 2, 4),
        ("K = 2, everybody shuffles", workload, "shuffled", 2, 8),
        ("K = 2, everybody sorts", workload, "sorted", 2, 8),
        ("all Alpaca jobs arrive first", replace(workload, listed_order=False), "as released", 4, 8),
        (f"1 epoch of {ALPACA_LEN:.0f} and {SQL_LEN:.0f} tokens (memory holds 2-3 jobs)", long, "as released", 4, 8),
        *((f"seed {seed}", replace(workload, seed=seed), "as released", 4, 8) for seed in (1, 2)),
    ]
    rows = []
    for what, load, order, k, candidates in cases:
        if bench.fidelity == "rate" and order != "shuffled":
            continue
        hours = {}
        for system, (policy, own) in policies(k, candidates).items():
            if system == p.PARALLEL:
                continue
            how: RowOrder = own if order == "as released" else ("sorted" if order == "sorted" else "shuffled")
            hours[system] = bench.run(load, policy, how).summary["makespan_s"] / p.HOUR_S
        three = sorted((hours[system], system.split()[-1]) for system in (p.SEQUENTIAL, p.M1, p.M3))
        rows.append(
            {"case": what, "rows": order, "K": k, "of": candidates, **{f"{s}, h": h for s, h in hours.items()},
             "minpad / sequential": hours[p.M3] / hours[p.SEQUENTIAL],
             "fifo / sequential": hours[p.M1] / hours[p.SEQUENTIAL],
             "order": " < ".join(name for _, name in three)}
        )  # fmt: skip
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Holds what the evaluation found."""

    runs: list[dict[str, Any]]
    """The simulated runs of the 8 jobs, one a system."""
    table: pd.DataFrame
    """Published figures beside ours (`aspen_evaluation.compare`)."""
    varied: pd.DataFrame
    """What the order of the systems depends on (`sensitivity`)."""

    def report(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON types."""
        return {
            "schema_version": 1, "order_holds": a.order_holds(self.table), "runs": self.runs,
            "table": a.records(self.table), "claims": a.records(a.claims(self.table)),
            "sensitivity": a.records(self.varied), "assumptions": list(ASSUMPTIONS),
        }  # fmt: skip


def evaluate(fidelity: str, scale: float, seed: int, tell: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Run every part of the evaluation.

    `scale` divides the rows of every job; `tell` is told what is being simulated.
    """
    bench = Bench(fidelity, tell)
    workload = Workload(scale=scale, seed=seed)
    figures, runs = mixed(bench, workload)
    figures += identical(bench, scale) + modelled()
    return Evaluation(runs=runs, table=a.compare(figures), varied=sensitivity(bench, workload))


def write(out: Path, found: Evaluation, fidelity: str, scale: float, seed: int) -> None:
    """Write evaluation.md, the tables and the charts into a folder (`FILES`)."""
    foot = (
        f"Simulated ({fidelity} fidelity); costs fitted to published figures or assumed, no GPU measured. "
        "Published: arXiv 2312.02515"
    )
    a.write(out, found.table, about(fidelity, scale, seed, out), found.varied, foot, why=WHY)


def about(fidelity: str, scale: float, seed: int, out: Path) -> list[str]:
    """Return the report's paragraphs before its tables."""
    packages = ("loramux", "numpy", "scipy", "pandas", "simpy", "matplotlib")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    command = f"loramux evaluate aspen --out {out} --fidelity {fidelity} --scale {scale:g} --seed {seed}"
    return [
        "Simulated; costs assumed or fitted to published figures, no GPU measured. "
        f"Published: arXiv 2312.02515. {datetime.now(UTC):%Y-%m-%d}, {fidelity} fidelity, seed {seed}"
        + (f", rows of every job divided by {scale:g}" if scale != 1.0 else "")
        + ".",
        f"`{command}` ({versions}, Python {sys.version.split()[0]})",
        "Assumed and inferred:\n\n" + "\n".join(f"- {text}" for text in ASSUMPTIONS),
    ]
