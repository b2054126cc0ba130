"""This module holds what users say to a live scheduler.

It is `loramux submit`, `status`, `cancel`, `pause`, `resume`, `logs`, `export`, ...
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from loramux_cli import options as o
from loramux_cli.live import State

if TYPE_CHECKING:
    from loramux_runtime.live.state.store import Store

T = TypeVar("T")
NAMES = {"policy": "set-policy"}
"""Commands that have another name in the store."""
JobName = Annotated[str, typer.Argument(help="The job.")]
Wait = Annotated[float, typer.Option(min=0.0, help="Seconds to wait for the scheduler's answer.")]


def submit_command(
    jobs: Annotated[Path, typer.Argument(help="job.yaml (one job, or a list under jobs:), or a trace (jobs.csv).")],
    state: State,
    job_id: Annotated[str | None, typer.Option("--id", help="Name of the job, instead of the file's.")] = None,
    priority: Annotated[int | None, typer.Option(help="Priority, instead of the file's. Higher runs first.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Put jobs into the queue. They are safe when this returns, whether or not a scheduler runs."""
    from loramux_cli.device_choice import need_torch

    need_torch()
    from loramux_cli.submission import check_files, other_base, read_submission, send
    from loramux_traces.files import real_path

    found = read_submission(jobs, job_id=job_id, priority=priority)
    folder = Path.cwd() if str(jobs) == "-" else real_path(jobs).parent
    check_files(jobs, found, folder)
    store = _queue(state)
    note = other_base(jobs, store)
    if note is not None:
        typer.echo(f"note: {jobs}: {note}", err=True)
    send(store, found, folder)
    if _runs(store) and store.fact("draining"):
        typer.echo("note: the scheduler is draining; these jobs are for the next one", err=True)
    names = [job.id for job in found]
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text({"schema_version": 1, "submitted": names}, indent=2))
        return
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    typer.echo(f"submitted {shown}{'' if _runs(store) else ' (no scheduler is running: loramux run starts one)'}")


def status_command(
    state: State,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks with --watch.")] = 1.0,
    show_all: Annotated[bool, typer.Option("--all", help="Show jobs that have ended, too, however many.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Show the jobs: state, steps, loss, speed, memory, expected finish, and why they wait.

    Of those that have ended the newest are listed (--all: every one), the others counted.
    """
    from loramux_runtime.live.state.retention import RECENT_JOBS
    from loramux_runtime.live.watch.status import read_status

    store = _open(state, look_only=True)
    most = None if show_all else RECENT_JOBS
    if as_json:
        from loramux_traces.filesafe import json_text

        typer.echo(json_text(read_status(store, most_ended=most), indent=2))
        return
    from loramux_cli.status_view import show
    from loramux_cli.status_view import watch as keep_watching

    if watch:
        store.close()
        keep_watching(lambda: _look(state, partial(read_status, most_ended=most)), every, show_all=show_all)
        return
    show(read_status(store, most_ended=most), show_all=show_all)


def prune_command(
    state: State,
    keep: Annotated[str, typer.Option(help="Keep jobs that ended within this span: 30d, 12h, 90m.")] = "30d",
) -> None:
    """Delete what is known of jobs that ended long ago: their rows, loss curves and events.

    Adapters stay. A scheduler may run meanwhile.
    """
    from loramux_runtime.live.state.retention import prune, shrink, span_s
    from loramux_runtime.live.watch.status import read_status

    span = span_s(keep)
    store = _open(state)
    gone = prune(store, float(read_status(store, most_ended=0)["now_s"]) - span)
    shrink(store)
    typer.echo(f"deleted what was known of {len(gone):,} jobs that ended over {keep} ago; their adapters stay")


def cancel_command(job: JobName, state: State, wait: Wait = 30.0) -> None:
    """End a job for good; what it has learned is dropped."""
    _ask(state, "cancel", job, wait_s=wait)


def pause_command(job: JobName, state: State, wait: Wait = 30.0) -> None:
    """Take a job off the device until `resume`; it keeps what it has learned."""
    _ask(state, "pause", job, wait_s=wait)


def resume_command(job: JobName, state: State, wait: Wait = 30.0) -> None:
    """Let a paused job wait for the device again.

    The same for one that was rejected or did not fit, once that is mended.
    """
    _ask(state, "resume", job, wait_s=wait)


def drain_command(state: State, wait: Wait = 30.0) -> None:
    """Begin no job any more; the scheduler ends when those that have begun have ended.

    The others stay in the queue.
    """
    from loramux_traces.errors import UsageError

    if not _runs(_open(state)):
        raise UsageError(f"{state}: no scheduler is running, so there is none to drain")
    _ask(state, "drain", wait_s=wait)


def set_policy_command(
    policy: Annotated[str, typer.Argument(help="Policy, as for simulate.")], state: State, wait: Wait = 30.0
) -> None:
    """Have a running scheduler decide by another policy from its next step on."""
    from loramux_policies.registry import create

    if (":" not in policy or "=" in policy) and not _open(state).fact("policy_files"):
        create(policy)  # a name that cannot be meant is refused here already
    _ask(state, "policy", argument=policy, wait_s=wait)


def logs_command(
    job: JobName,
    state: State,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Print what a job has learned, a line per optimizer step.

    A line has loss, learning rate and gradient norm.
    """
    from loramux_runtime.live.state.job_rows import OPEN
    from loramux_traces.filesafe import json_text

    store = _open(state, look_only=True)
    row = store.job(job)
    if row["state"] not in OPEN or not _runs(store):
        typer.echo(f"{job} is {row['state']}{': ' + row['reason'] if row['reason'] else ''}", err=True)
    step, held_out = 0, None
    while True:
        ended = store.job(job)["state"] not in OPEN
        for record in store.records(job, step):
            step = record["step"]
            text = _line(record, held_out)
            held_out = record.get("eval_loss")
            typer.echo(json_text(record) if as_json else text)
        if not follow or ended:
            return
        time.sleep(0.5)
        store.close()
        # it is opened anew: without leave to write, only what was there at the opening is seen
        store = _open(state, look_only=True)


def export_command(
    job: JobName,
    state: State,
    out: Annotated[Path, typer.Option(help="Folder for the adapter; must not exist.")],
    wait: Wait = 30.0,
) -> None:
    """Write a job's adapter (LoRA: as PEFT reads it).

    Of an ended job it is its last, of a running one as it is now.
    """
    import shutil

    from loramux_traces.errors import StateError, UsageError
    from loramux_traces.files import real_path

    store = _open(state, look_only=True)
    row = store.job(job)
    if out.exists() or out.is_symlink():
        raise StateError(f"{out}: exists already")
    if row["state"] != "COMPLETED":
        if not _runs(store):
            raise UsageError(f"{job} is {row['state']}, and no scheduler is running that could write its adapter")
        _ask(state, "export", job, argument=str(real_path(out)), wait_s=wait)
        return
    source = state / "adapters" / job
    if not source.is_dir():
        raise StateError(f"{source}: is not there ({row['reason'] or 'moved away?'})")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(out)
    typer.echo(f"the adapter of {job} is in {out}")


def _open(state: Path, *, look_only: bool = False) -> Store:
    """Open the state folder.

    `look_only`: it may be somebody else's, without leave to write.
    """
    from loramux_runtime.live.state.store import Store

    return Store(state, read_only=look_only and not os.access(state, os.W_OK))


def _look(state: Path, read: Callable[[Store], T]) -> T:
    """Take one look at a state folder."""
    store = _open(state, look_only=True)
    try:
        return read(store)
    finally:
        store.close()


def _queue(state: Path) -> Store:
    """Open the state folder, or make it: a queue may be filled before the first scheduler comes.

    StateError for a folder of other things.
    """
    from loramux_runtime.live.state.store import DATABASE, OURS, Store
    from loramux_traces.errors import StateError

    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        # whoever may write here may use the scheduler
        state.mkdir(0o700, exist_ok=True)
        if not (state / DATABASE).exists() and any(path.name not in OURS for path in state.iterdir()):
            raise StateError(f"{state}: is not empty and no scheduler's state (no {DATABASE})")
    except OSError as error:
        raise StateError(f"{state}: cannot be used ({error.strerror})") from error
    return Store(state, create=True)


def _runs(store: Store) -> bool:
    from loramux_traces.locking import owner

    return owner(store.folder) is not None


def _ask(state: Path, verb: str, job: str = "", *, argument: str = "", wait_s: float) -> None:
    """Leave a command and wait for its answer."""
    from loramux_runtime.live.state.job_rows import OPEN
    from loramux_traces.errors import UsageError
    from loramux_traces.results import REJECTED, UNSCHEDULABLE

    store = _open(state)
    if job:
        row = store.job(job)
        again = row["start_s"] is None and row["state"] in (REJECTED, UNSCHEDULABLE)
        again = again and (verb == "resume" or any(c["job_id"] == job for c in store.open_commands()))
        if row["state"] not in OPEN and not again:
            raise UsageError(f"{job} has ended already: {row['state']}")
    number = store.command(verb, job, argument)
    if not _runs(store):
        typer.echo(
            f"noted: {NAMES.get(verb, verb)} {job}".rstrip() + "; no scheduler is running, the next one will see to it"
        )
        return
    until = time.monotonic() + wait_s
    while True:
        found = store.answered(number)
        if found is not None:
            break
        if time.monotonic() > until:
            typer.echo(
                f"noted: {NAMES.get(verb, verb)} {job}".rstrip() + "; the scheduler has not answered yet (a long step?)"
            )
            return
        time.sleep(0.05)
    if found["refused"]:
        raise UsageError(found["refused"])
    typer.echo(found["answer"])


def _line(record: dict[str, Any], held_out: float | None) -> str:
    """Return a record as text for people.

    The held-out loss is in it where it is another than the last one (`held_out`).
    """
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    norm = "-" if record["grad_norm"] is None else f"{record['grad_norm']:.3f}"
    text = f"{record['t_s']:10.1f} s  step {record['step']}/{record['total_steps']}  loss {loss}"
    text += f"  lr {record['lr']:.2e}  grad norm {norm}"
    if record.get("eval_loss") not in (None, held_out):
        text += f"  held-out loss {record['eval_loss']:.4f}"
    return text
