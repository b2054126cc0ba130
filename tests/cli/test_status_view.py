"""What `loramux status` shows at 80 and at 120 columns, and how --watch goes on and ends."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any

import pytest
import typer
from rich.console import Console

from loramux_cli import status_view
from loramux_cli.main import main
from loramux_cli.status_view import clock, show, table, watch

from ..runtime.live.status import every_state, job, status
from ..waiting import communicated

GIB = 2.0**30
UNIX_S = 1_700_000_002.0
AT_80 = """\
aspen on llama-7b, cuda:0: scheduler running as pid 4242
memory 41.50 GiB of 80.00 GiB (jobs at most 44.00 GiB), 12,346 tokens/s
1 running, 2 waiting, 812 fused steps, 1 out-of-memory event, 3 preemptions

                                         peak/
                                         bound
job state     step  loss tok/s    finish   GiB why
j02 RUNNING 37/100 1.250 3,000 in 5m 00s   9.5
                                         /10.0
j03 HELD     0/100     -     -         -     -
j01 WAITING  0/100     -     -         -     - it needs up to 12.00 GiB, at most
                                               3.50 GiB are free
j00 QUEUED   0/100     -     -         -     -
and 1 COMPLETED, 1 CANCELLED, 1 REJECTED, 1 UNSCHEDULABLE, 1 FAILED_OOM, 1
FAILED_DIVERGED, 1 FAILED_DATA, 1 FAILED_CRASHED before (--all lists them)
  j06: REJECTED
  j07: UNSCHEDULABLE
  j08: FAILED_OOM
"""
AT_120 = """\
                                                     peak/bound
job method prio state     step  loss tok/s    finish        GiB why
j02 lora      2 RUNNING 37/100 1.250 3,000 in 5m 00s   9.5/10.0
j03 lora      0 HELD     0/100     -     -         -          -
j01 lora      1 WAITING  0/100     -     -         -          - it needs up to 12.00 GiB, at most 3.50 GiB are free
j00 lora      0 QUEUED   0/100     -     -         -          -
"""


def text(given: dict[str, Any], width: int = 80, **options: Any) -> str:
    """The table as plain text."""
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, legacy_windows=False)
    console.print(table(given, unix_s=UNIX_S, **options))
    shown = file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    return re.sub(r" +$", "", shown, flags=re.MULTILINE)


def test_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_view, "RECENT", 0)
    assert text(status(every_state())) == AT_80


def test_the_latest_ends_are_listed_where_there_is_room() -> None:
    jobs = [job(f"c{i:02d}", "COMPLETED", finish_s=float(i)) for i in range(14)]
    shown = text(status([*jobs, job("r", "RUNNING")]))
    assert [line.split()[0] for line in shown.splitlines()[7:-1]] == ["r", *(f"c{i:02d}" for i in range(13, 3, -1))]
    assert shown.splitlines()[-1] == "and 4 COMPLETED before (--all lists them)"
    crowd = [job(f"w{i}", "WAITING") for i in range(status_view.MOST_ROWS)]
    assert "and 14 COMPLETED before" in text(status([*jobs, *crowd]))


def test_at_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_view, "RECENT", 0)
    assert AT_120 in text(status(every_state()), 120)


def test_all_lists_every_job() -> None:
    shown = text(status(every_state()), show_all=True)
    for entry in every_state():
        assert entry["job_id"] in shown
    assert re.search(r"UNSCHED- .*\n +ULABLE\n", shown) and "1m 40s ago" in shown and "--all" not in shown


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_is_cut(width: int) -> None:
    large = {"step": 12000, "total_steps": 20000, "loss": 12.345, "peak_bytes": 38.5 * GIB}
    large |= {"predicted_bytes": 140 * GIB, "tokens_per_s": 12345.0, "why": "w" * 300}
    jobs = [
        job("a" * 64, "RUNNING", expected_finish_s=1000.0 + 3599, **large),
        job("b", "FAILED_DIVERGED", finish_s=1000.0 - 3599, **large),
    ]
    shown = text(status(jobs), width, show_all=True)
    assert "…" not in shown
    for figure in ("12000", "/20000", "12.345", "12,345", "38.5", "/140.0", "in 59m 59s", "59m 59s ago", "DIVERGED"):
        assert figure in shown
    assert shown.count("a") >= 64 and shown.count("w") >= 600


def test_names_cannot_drive_the_terminal() -> None:
    nasty = "\x1b[2J[red]\u202e\n"
    jobs = [job(nasty, "WAITING", why=nasty), job("x", "FAILED_DATA", why=nasty)]
    for show_all in (False, True):
        shown = text(status(jobs, policy=nasty, base_model=nasty, device=nasty), 120, show_all=show_all)
        assert "\x1b" not in shown and "\u202e" not in shown
        assert "\\x1b[2J[red]\\u202e\\n" in shown


def test_a_thousand_jobs_fit_a_page() -> None:
    jobs = [job(f"w{i}", "WAITING", why="every seat is taken") for i in range(1000)]
    jobs += [job(f"c{i}", "COMPLETED", finish_s=9.0) for i in range(500)]
    jobs += [job(f"f{i}", "FAILED_DATA", finish_s=float(i), why=f"row {i} is empty") for i in range(10)]
    jobs.append(job("running", "RUNNING"))
    shown = text(status(jobs))
    assert len(shown.splitlines()) < status_view.MOST_ROWS + 15
    assert "and 961 WAITING more (--all lists them)" in shown
    assert "10 FAILED_DATA" in shown and "500 COMPLETED" in shown and " before (--all lists them)" in shown
    assert "  f9: FAILED_DATA: row 9 is empty" in shown and "f6:" not in shown
    assert shown.index("running") < shown.index("w0 ")
    assert len(text(status(jobs), show_all=True).splitlines()) > 1511


def test_the_headline_says_what_the_scheduler_does() -> None:
    stopped = text(status([], running=False, pid=None, updated_unix_s=UNIX_S - 123))
    assert "scheduler not running, figures of 2m 03s ago" in stopped and "no job yet" in stopped
    assert "pid 4242, draining" in text(status([], draining=True))
    assert "running as pid 4242, figures of 40s ago" in text(status([], updated_unix_s=UNIX_S - 40))
    unknown = text(status([], memory_bytes=None, capacity_bytes=None))
    assert "memory at most 44.00 GiB, 12,346 tokens/s" in unknown


def test_memory_of_small_jobs_is_in_mib() -> None:
    shown = text(status([job("a", "RUNNING", peak_bytes=None, predicted_bytes=5.25 * 2**20)]), 120)
    assert "MiB" in shown and "-/5.2" in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (123, "2m 03s"), (3720, "1h 02m"), (273_600, "3d 04h")],
)
def test_times_for_people(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_below_80_columns_no_name_is_lost() -> None:
    file = io.StringIO()
    show(status(every_state()), console=Console(file=file, width=40))
    assert "running as pid 4242," in file.getvalue() and re.search(r"j02 RUNNING +37/100", file.getvalue())


class Interrupting:
    """A `read` that is interrupted the third time."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> dict[str, Any]:
        self.reads += 1
        if self.reads == 3:
            raise KeyboardInterrupt
        return status(every_state(), steps=self.reads)


@pytest.mark.parametrize("terminal", [False, True])
def test_watch_repeats_until_interrupted(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, height=40, force_terminal=terminal)
    with pytest.raises(typer.Exit) as ended:
        watch(Interrupting(), 0.001, console=console)
    assert ended.value.exit_code == 130
    # Live shows the last one again
    assert file.getvalue().count("it needs up to 12.00 GiB") == (3 if terminal else 2)
    assert ("\x1b[" in file.getvalue()) == terminal
    if terminal:
        assert "\x1b[?25h" in file.getvalue()  # the cursor is back


def test_watch_passes_errors_on() -> None:
    def read() -> dict[str, Any]:
        raise RuntimeError("the folder is gone")

    with pytest.raises(RuntimeError, match="gone"):
        watch(read, 0.001, console=Console(file=io.StringIO()))


WATCHER = """
import sys
import loramux_cli.main as main
from loramux_cli.status_view import watch
given = {given!r}
def command(argv):
    watch(lambda: given, 0.05)
main._run(command, [])
"""


def test_ctrl_c_ends_it_with_130_and_without_torch() -> None:
    import signal

    assert callable(main)
    code = WATCHER.format(given=status(every_state()))
    code = code.replace(
        "main._run(command, [])",
        "import atexit; atexit.register(lambda: print('torch' in sys.modules))\nmain._run(command, [])",
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(30)]  # the second print has begun
        process.send_signal(signal.SIGINT)
        rest, errors = communicated(process)
    assert sum("pid 4242" in line for line in seen) >= 1
    assert (process.returncode, errors) == (130, "loramux: interrupted\n")
    assert rest.endswith("False\n")
