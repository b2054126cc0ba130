"""This module lays out what `loramux status` shows.

It is a headline, a row per job, and the same again and again under --watch. No torch is needed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from loramux_runtime.live.watch.status import MOST_FAILURES
from loramux_traces.errors import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

EXIT_SIGINT: Final = 130
NARROWEST: Final = 80
WIDE: Final = 110
"""From this many columns on, the table has every column."""
MOST_ROWS: Final = 40
"""Most jobs listed where not all are asked for."""
RECENT: Final = 10
"""Most ended jobs among the listed ones, where there is room."""
STALE_S: Final = 30.0
"""Seconds from which on the figures of a running scheduler are said to be old."""
ORDER: Final = ("RUNNING", "HELD", "WAITING", "QUEUED")
"""States of jobs in the system, in the order in which they are listed."""
STYLES: Final = {"RUNNING": "green", "HELD": "yellow", "COMPLETED": "dim", "CANCELLED": "dim"}
SPLIT: Final = {"UNSCHEDULABLE": "UNSCHED-\nULABLE"}
"""States too long for the column; the others are split at `_`."""


def table(
    status: Mapping[str, Any], *, show_all: bool = False, most_rows: int = MOST_ROWS, unix_s: float | None = None
) -> StatusTable:
    """Return a status as something rich prints, fitted to the width it is printed at.

    It is made for 80 and for 120 columns. Ended jobs but the latest few, and jobs beyond
    `most_rows`, are only counted unless `show_all`; of the failures among them the latest three are
    named. `unix_s` is the time now, to say how old the figures are.
    """
    return StatusTable(status, show_all=show_all, most_rows=most_rows, unix_s=time.time() if unix_s is None else unix_s)


def show(status: Mapping[str, Any], *, show_all: bool = False, console: Console | None = None) -> None:
    """Print a status once; in a terminal below 80 columns lines wrap, but no name is lost."""
    from rich.console import Console

    console = console or Console()
    console.width = max(console.width, NARROWEST)
    console.print(table(status, show_all=show_all))


def watch(
    read: Callable[[], Mapping[str, Any]],
    every_s: float,
    *,
    show_all: bool = False,
    console: Console | None = None,
) -> None:
    """Show `read()` every `every_s` seconds until interrupted (exit code 130).

    It is shown in place on a terminal (as many jobs as it has room for), elsewhere one print after
    the other. What `read` raises ends it.
    """
    import typer
    from rich.console import Console
    from rich.live import Live

    console = console or Console()
    try:
        if not console.is_terminal:
            while True:
                show(read(), show_all=show_all, console=console)
                console.print()
                console.file.flush()
                time.sleep(every_s)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                room = max(3, console.height - 10)
                live.update(table(read(), show_all=show_all, most_rows=room), refresh=True)
                time.sleep(every_s)
    except KeyboardInterrupt:
        # this is where loramux' own handler of the signal is not set
        raise typer.Exit(EXIT_SIGINT) from None


class StatusTable:
    """Lays a status out when it is printed: only then is the width known."""

    def __init__(self, status: Mapping[str, Any], *, show_all: bool, most_rows: int, unix_s: float) -> None:
        self._status = status
        self._now_s = float(status["now_s"])
        self._old_s = max(0.0, unix_s - float(status["updated_unix_s"]))
        jobs: list[Mapping[str, Any]] = list(status["jobs"])
        live = [job for state in ORDER for job in jobs if job["state"] == state]
        self._ended = [job for job in jobs if job["state"] not in ORDER]
        self._ended.sort(key=lambda job: -(job["finish_s"] or 0.0))
        room = max(0, min(RECENT, most_rows - len(live)))
        self._shown = live + self._ended if show_all else live[:most_rows] + self._ended[:room]
        self._hidden = [] if show_all else live[most_rows:]
        self._folded = [] if show_all else self._ended[room:]
        listed = Counter(str(job["state"]) for job in jobs)
        self._unlisted = Counter(status.get("states") or listed) - listed
        """Ended jobs that the status counts and does not list, by state."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        for line in self._headline():
            yield Text(line)
        if self._shown:
            yield Text("")
            yield self._table(options.max_width)
        elif not self._status["jobs"]:
            yield Text("no job yet")
        for line in self._footer():
            yield Text(line, style="dim")

    def _headline(self) -> Iterable[str]:
        s = self._status
        policy, base, device = (printable(str(s[key]), 60) for key in ("policy", "base_model", "device"))
        state = f"scheduler running as pid {s['pid']}" if s["running"] else "scheduler not running"
        if not s["updated_unix_s"]:
            yield f"{state}: it has not begun yet" if s["running"] else f"{state}, and none has run here yet"
            return
        if s["draining"]:
            state += ", draining"
        if not s["running"] or self._old_s > STALE_S:
            state += f", figures of {clock(self._old_s)} ago"
        yield f"{policy} on {base}, {device}: {state}"
        if s.get("unsaved_s") is not None:
            yield f"nothing is committed for {clock(s['unsaved_s'])}: another process holds the lock of the queue"
        if s["running"] and s.get("base_changed"):
            yield f"{printable(str(s['base_changed']), 300)}; jobs go on with the one that is loaded"
        if s["running"]:
            yield f"{self._memory()}, {s['tokens_per_s']:,.0f} tokens/s"
        counts = [f"{s['resident']:,} running", f"{s['waiting']:,} waiting", _counted(s["steps"], "fused step")]
        for key, noun in (
            ("oom_events", "out-of-memory event"),
            ("preemptions", "preemption"),
            ("restarts", "restart"),
            ("policy_errors", "policy error"),
        ):
            if s[key]:
                counts.append(_counted(s[key], noun))
        yield ", ".join(counts)

    def _memory(self) -> str:
        from loramux_cli.estimate import gib

        s = self._status
        used, most = s["memory_bytes"], s["memory_predicted_bytes"]
        parts = [f"memory {gib(used)}" if used is not None else f"memory at most {gib(most)}"]
        if s["capacity_bytes"] is not None:
            parts.append(f"of {gib(s['capacity_bytes'])}")
        if used is not None:
            parts.append(f"(jobs at most {gib(most)})")
        return " ".join(parts)

    def _footer(self) -> Iterable[str]:
        if self._hidden:
            yield f"and {_by_state(self._hidden)} more (--all lists them)"
        before = Counter(job["state"] for job in self._folded) + self._unlisted
        if before:
            yield f"and {_counts(before)} before (--all lists them)"
            failed = [job for job in self._folded if job["state"] not in ("COMPLETED", "CANCELLED")]
            for job in failed[:MOST_FAILURES]:
                why = f": {printable(job['why'], 300)}" if job["why"] else ""
                yield f"  {printable(job['job_id'], 64)}: {job['state']}{why}"

    def _table(self, width: int) -> Table:
        from rich.table import Table
        from rich.text import Text

        wide = width >= WIDE
        unit, size = _unit(self._shown)
        grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), width=width)
        grid.add_column("job", overflow="fold", max_width=20 if wide else 12)
        if wide:
            grid.add_column("method", no_wrap=True)
            grid.add_column("prio", justify="right", no_wrap=True)
        grid.add_column("state", no_wrap=True)
        for name in ("step", "loss", "tok/s", "finish"):
            grid.add_column(name, justify="right", no_wrap=True)
        grid.add_column(f"peak/bound\n{unit}" if wide else f"peak/\nbound\n{unit}", justify="right", no_wrap=True)
        grid.add_column("why", ratio=1, overflow="fold")
        for job in self._shown:
            state = job["state"]
            style = "red" if state.startswith(("FAILED", "REJECTED", "UNSCHED")) else STYLES.get(state, "")
            cells = [Text(printable(job["job_id"], 64))]
            if wide:
                cells += [Text(printable(str(job["method"]), 12)), Text(f"{job['priority']}")]
            cells.append(Text(SPLIT.get(state, state.replace("_", "\n")), style=style))
            cells += map(Text, (*self._numbers(job, wide=wide), _memory_cell(job, size, wide=wide)))
            grid.add_row(*cells, Text(printable(job["why"], 300)))
        return grid

    def _numbers(self, job: Mapping[str, Any], *, wide: bool) -> tuple[str, str, str, str]:
        """Return the cells for step, loss, tokens/s and finish."""
        loss, rate = job["loss"], job["tokens_per_s"]
        shown = "-" if loss is None else f"{loss:.3f}" if abs(loss) < 1000 else f"{loss:.2e}"
        finish = "-"
        if job["finish_s"] is not None:
            finish = f"{clock(self._now_s - job['finish_s'])} ago"
        elif job["expected_finish_s"] is not None:
            finish = f"in {clock(job['expected_finish_s'] - self._now_s)}"
        total = "?" if job["total_steps"] is None else f"{job['total_steps']:.0f}"
        done = f"{job['step']:.0f}"
        between = "/" if wide or len(total) < 5 else "\n/"
        return done + between + total, shown, "-" if rate is None else f"{rate:,.0f}", finish


def clock(seconds: float) -> str:
    """Return a time between two moments as text: 45s, 2m 03s, 1h 02m, 3d 04h.

    A negative one (a guess overtaken) is 0s.
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    minutes = whole // 60
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02}m"
    return f"{minutes // 1440}d {minutes % 1440 // 60:02}h"


def _unit(jobs: Iterable[Mapping[str, Any]]) -> tuple[str, float]:
    """Return one unit for the column: MiB where every job is below 1 GiB."""
    most = max((job[key] or 0.0 for job in jobs for key in ("peak_bytes", "predicted_bytes")), default=0.0)
    return ("GiB", 2.0**30) if most >= 2**30 else ("MiB", 2.0**20)


def _memory_cell(job: Mapping[str, Any], size: float, *, wide: bool) -> str:
    peak, bound = ("-" if job[key] is None else f"{job[key] / size:,.1f}" for key in ("peak_bytes", "predicted_bytes"))
    return "-" if peak == bound == "-" else f"{peak}/{bound}" if wide else f"{peak}\n/{bound}"


def _by_state(jobs: Iterable[Mapping[str, Any]]) -> str:
    return _counts(Counter(job["state"] for job in jobs))


def _counts(states: Counter[str]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in states.items())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
