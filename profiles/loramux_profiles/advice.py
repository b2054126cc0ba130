"""A recommendation as one sentence of advice."""

from __future__ import annotations

from collections.abc import Sequence

from loramux_profiles.recommendation import PAYS, Recommendation
from loramux_traces.job import JobSpec


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _times(a: float, b: float) -> str:
    return f"{a / b:.2f} times"


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def advice(r: Recommendation, specs: Sequence[JobSpec]) -> str:
    """Return the advice as one sentence."""
    best = r.best
    if best is None:
        if r.weight_bytes > r.capacity_bytes:
            return (
                f"Nothing runs on {r.device}: the weights of {', '.join(r.models)} alone take {_gib(r.weight_bytes)} "
                f"of {_gib(r.capacity_bytes)}."
            )
        need = min(one.need_bytes for one in r.alone)
        return (
            f"Nothing runs on {r.device}: one row of a job needs {_gib(need)} even with recompute, "
            f"of {_gib(r.capacity_bytes)}."
        )
    mode = "with recompute" if best.recompute else "without recompute"
    figures = (
        f"{_gib(best.upper_bytes)} of {_gib(r.capacity_bytes)} at the upper bound, {best.tokens_per_s:,.0f} tokens/s"
    )
    single = [one for one in r.alone if one.largest and one.recompute is best.recompute]
    if r.copies:
        size = f"a micro-batch of {_plural(best.micro_batches[0], 'row')}"
        more = f"up to {_most(r, best.recompute)} fit"
        if not best.recompute and r.most[True] > r.most[False]:
            more += f" ({_most(r, True)} with recompute)"
        if best.jobs == 1:
            start = f"Run one job at a time at {size} {mode}: {figures}"
            tail = f"; {more}, but sharing gains at most {PAYS:.0%}."
            if r.most[best.recompute] == 1:
                tail = f"; no second one fits{'' if r.most[True] < 2 else f' ({_most(r, True)} would with recompute)'}."
        else:
            gain = _times(best.tokens_per_s, max(one.tokens_per_s for one in single))
            start = f"Fuse {_plural(best.jobs, 'job')} at {size} each {mode}: {figures}, {gain} one alone"
            tail = (
                f"; {more}." if r.most[best.recompute] == best.jobs else f"; {more}, but more gain at most {PAYS:.0%}."
            )
        return start + tail
    sizes = sorted(set(best.micro_batches))
    rows = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    who = (
        f"all {best.jobs} jobs" if best.jobs == len(specs) else f"{_plural(best.jobs, 'job')} ({_names(best.job_ids)})"
    )
    text = f"Run {who} together at micro-batches of {rows} rows {mode}: {figures}"
    if r.left_out:
        text += f"; {_names(r.left_out)} must wait, there is no room beside them"
    if r.never:
        text += f"; {_names(r.never)} can never run here, not one row fits"
    return text + "."


def _most(r: Recommendation, recompute: bool) -> str:
    return f"{'more than ' if r.capped[recompute] else ''}{_plural(r.most[recompute], 'job')}"


def _names(names: Sequence[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
