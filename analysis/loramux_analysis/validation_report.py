"""Put a validation into words: what a reader must know beside the table."""

from __future__ import annotations

from collections.abc import Sequence

from loramux_analysis.validation import JOBS_WITHIN, MEAN_WITHIN, PolicyAgreement, Validation
from loramux_traces.runfolder import PLOTS

_HEAD = (
    "policy", "repeats", "jobs", "real mean", "simulated mean", "error", "real spread", "job error p50 / p90",
    "between real runs p50 / p90", "makespan", "memory peak", "KS", "Wasserstein", "within",
)  # fmt: skip


def said(found: Validation, steps: int | None = None) -> list[str]:
    """Return the lines below the table.

    They tell the machine's speed, the ranking, memory, and what is missed.
    """
    lines = [_speed(found, steps), _order(found)]
    memory = [f"{row.policy} {row.memory_error:+.1%}" for row in found.policies if row.memory_error is not None]
    lines.append(f"Peak memory: {', '.join(memory)}." if memory else "Memory was not measured in the real runs.")
    missed = found.missed()
    lines.append(
        f"Within {MEAN_WITHIN:.0%} of the mean and {JOBS_WITHIN:.0%} for nine jobs in ten (or within what real runs "
        "differ by), ranking kept: " + ("yes." if not missed else "no: " + "; ".join(missed) + ".")
    )
    return lines


def _speed(found: Validation, steps: int | None) -> str:
    if found.speed_factor is None:
        text = "The real runs recorded no steps: the machine's speed beside its profile is unknown"
    else:
        over = f" over {steps:,} steps" if steps else ""
        text = f"Fused steps took {found.speed_factor:.3f} times what the profile predicts{over}"
        each = [twin.speed_factor for twin in found.twins if twin.speed_factor is not None]
        if len(each) > 1:
            text += f" ({min(each):.3f} to {max(each):.3f} run by run)"
    if found.applied_factor == 1.0:
        return f"{text}; simulated step times are those of the profile."
    return f"{text}; simulated step times are multiplied by {found.applied_factor:.3f}, one number for all runs."


def _order(found: Validation) -> str:
    ranking = found.ranking
    pairs = len(found.policies) * (len(found.policies) - 1) // 2
    if not pairs:
        return "One policy, no ranking."
    tau = "unknown" if ranking.tau is None else f"{ranking.tau:.2f}"
    return (
        f"Order of the policies: Kendall tau {tau}; of {pairs} pairs the real runs put {len(ranking.disjoint)} in an "
        f"order (95% intervals that do not meet), and the simulation reverses {len(ranking.discordant)} of these."
    )


def markdown(found: Validation, pictures: Sequence[str]) -> str:
    """Write validation.md as text: the table, the words and the charts."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(_cells(row) for row in found.policies)]
    lines = ["# Simulated against real", ""]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", *(line + "\n" for line in said(found))]
    for name in pictures:
        lines += [f"![{name}]({PLOTS}/{name}.png)", ""]
    return "\n".join(lines)


def _cells(row: PolicyAgreement) -> tuple[str, ...]:
    return (
        row.policy,
        f"{row.repeats}",
        f"{row.jobs}",
        f"{row.real_mean_s:.4g} s" if row.jobs else "-",
        f"{row.simulated_mean_s:.4g} s" if row.jobs else "-",
        _percent(row.mean_error if row.jobs else None, sign=True),
        _percent(row.spread),
        f"{_percent(row.job_error_p50)} / {_percent(row.job_error_p90)}",
        f"{_percent(row.job_noise_p50)} / {_percent(row.job_noise_p90)}",
        _percent(row.makespan_error, sign=True),
        _percent(row.memory_error, sign=True),
        "-" if row.ks is None else f"{row.ks:.3f}",
        "-" if row.wasserstein_s is None else f"{row.wasserstein_s:.3g} s",
        "yes" if row.mean_ok and row.jobs_ok and row.same_jobs else "no",
    )


def _percent(value: float | None, *, sign: bool = False) -> str:
    return "-" if value is None else f"{value:+.2%}" if sign else f"{value:.2%}"
