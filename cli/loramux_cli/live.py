"""This module is `loramux run`.

It runs the live scheduler, on one device or on those of a Ray cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux_cli import options as o
from loramux_cli.device_choice import choose_profile, hush_weight_bars, need_torch, profile_name
from loramux_cli.option_object import takes

if TYPE_CHECKING:
    from loramux_profiles.devices import DeviceProfile
    from loramux_runtime.live.opening import Opened
    from loramux_runtime.live.settings import EngineChoice, LiveSettings

EXIT_FAILED_JOBS = 3
EXIT_NEVER_FITS = 4
State = Annotated[Path, typer.Option(help="State folder of the scheduler.", readable=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Holds the options of `loramux run`."""

    state: State
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder, a shape (random weights), or a jobs.yaml. Needed the first time."),
    ] = None
    dtype: Annotated[str, typer.Option(help="fp32 or bf16, of a named shape or a folder.")] = "fp32"
    policy: Annotated[str | None, typer.Option(help="Policy, as for simulate. Default: the last, or aspen.")] = None
    policy_file: o.PolicyFile = None
    device: o.TorchDevice = "auto"
    device_profile: o.ProfileName = None
    allow_other: o.AllowOther = False
    memory: o.JobMemory = None
    engine: Annotated[
        str, typer.Option(help="local: one device, in this process; ray: an actor for each device (extra ray).")
    ] = "local"
    devices: Annotated[
        int | None, typer.Option(min=1, help="With ray: how many. Default: all GPUs of the cluster, or one CPU.")
    ] = None
    ray_address: Annotated[
        str | None, typer.Option(help="With ray: a running cluster (it must ask for a token). Default: one of its own.")
    ] = None
    max_resident: o.Residents = None
    recompute: o.Recompute = False
    threads: o.Threads = None
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds of training that a crash may cost (more where saving is slow).")
    ] = 60.0
    keep: Annotated[
        str | None,
        typer.Option(help="Delete what is known of jobs that ended longer ago: 30d, 12h."),
    ] = None
    exit_when_idle: Annotated[
        bool, typer.Option("--exit-when-idle", help="End when every job has ended; default: wait for more.")
    ] = False
    on_policy_error: Annotated[
        str, typer.Option(help="A policy that fails or stalls: fallback (go on under fifo) or exit.")
    ] = "fallback"
    hang_after: Annotated[
        float, typer.Option(min=1.0, help="Seconds without a sign of life after which the process is started again.")
    ] = 600.0
    trace: Annotated[
        Path | None, typer.Option(help="Replay this trace on made-up rows of its lengths, and end when its jobs have.")
    ] = None
    time_scale: Annotated[float, typer.Option(min=1e-6, help="With --trace: arrivals so many times as fast.")] = 1.0
    step_scale: Annotated[float, typer.Option(min=1e-9, help="With --trace: every job's steps times this.")] = 1.0
    seed: Annotated[int, typer.Option(min=0, help="With --trace: seed of row lengths and tokens.")] = 0
    record: Annotated[bool, typer.Option("--record", help="Log every fused step too.")] = False
    supervise: Annotated[
        bool, typer.Option("--supervise/--no-supervise", help="Start the scheduler again when its process dies.")
    ] = True
    prometheus: Annotated[
        Path | None, typer.Option(help="Keep a Prometheus text file (*.prom, for node_exporter's textfile collector).")
    ] = None
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write training curves for TensorBoard into this folder (extra tensorboard).")
    ] = None
    quiet: o.Quiet = False

    def resolved(self) -> RunOptions:
        """Return the options with every path made absolute."""
        files = None if self.policy_file is None else [file.absolute() for file in self.policy_file]
        return replace(
            self,
            state=self.state.absolute(),
            policy_file=files,
            trace=_absolute(self.trace),
            prometheus=_absolute(self.prometheus),
            tensorboard=_absolute(self.tensorboard),
        )

    def engine_choice(self) -> EngineChoice:
        """Return what to train on; UsageError where the options do not go together."""
        from loramux_runtime.live.settings import EngineChoice

        return EngineChoice(
            engine=self.engine,
            devices=self.devices,
            address=self.ray_address,
            device=self.device,
            threads=self.threads,
        )

    def settings(self, policy: str) -> LiveSettings:
        """Return how the scheduler is to be run under this policy."""
        from math import inf

        from loramux_runtime.live.settings import LiveSettings
        from loramux_runtime.live.state.retention import span_s

        return LiveSettings(
            policy=policy,
            max_resident=float("inf") if self.max_resident is None else float(self.max_resident),
            recompute=self.recompute,
            checkpoint_s=self.checkpoint_every,
            keep_s=inf if self.keep is None else span_s(self.keep),
            exit_when_idle=self.exit_when_idle or self.trace is not None,
            on_policy_error="exit" if self.on_policy_error == "exit" else "fallback",
            record=self.record,
        )

    def profile(self, found: Opened) -> tuple[DeviceProfile, str]:
        """Return the device profile of the devices that were opened, and its name or file."""
        where, card = found.where, found.card
        profile = choose_profile(where, self.device_profile, self.memory, allow_other=self.allow_other, card=card)
        return profile, profile_name(where, self.device_profile, card)

    def say(self, text: str) -> None:
        """Print how the run goes on, unless told to be quiet."""
        if not self.quiet:
            typer.echo(text, err=True)


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


@takes(RunOptions)
def run_command(given: RunOptions) -> None:
    """Schedule and train jobs as they are submitted, until drained or stopped.

    State survives in --state.
    """
    need_torch()
    hush_weight_bars(quiet=given.quiet)
    from loramux_traces.errors import UsageError

    if given.on_policy_error not in ("fallback", "exit"):
        raise UsageError(f"--on-policy-error is fallback or exit, not {given.on_policy_error[:40]!r}")
    engine = given.engine_choice()
    code = _supervised(given) if given.supervise else _run(given, engine)
    raise typer.Exit(code)


def _run(given: RunOptions, engine: EngineChoice) -> int:
    """Be the scheduler's process; return its exit code."""
    from loramux_runtime.live.deaths import RESTARTED
    from loramux_runtime.live.state.same_folder import FolderGone
    from loramux_runtime.live.state.store import Store
    from loramux_runtime.train.signals import StopSignals
    from loramux_traces.files import real_path
    from loramux_traces.locking import owned
    from loramux_traces.runfolder import prepare_folder

    # a policy is code of a user: it may change the working folder
    given = given.resolved()
    prepare_folder(given.state, resume=True, private=True)
    with owned(given.state), StopSignals(lambda number: given.say("stopped before anything was trained")) as signals:
        # before torch is imported: whoever submits is told that a scheduler is there
        store = Store(given.state, create=True)
        store.wait_for_lock(_once(lambda: _warn("another process holds the lock of the queue: waiting for it")))
        from loramux_cli import running
        from loramux_runtime.jobs.bases import parse_base
        from loramux_runtime.live.process import Surroundings, run_scheduler
        from loramux_runtime.live.state.binding import bind_base, last_policy

        base = bind_base(store, None if given.base is None else parse_base(given.base, given.dtype))
        policy = last_policy(store, given.policy, given.policy_file, again=RESTARTED in os.environ)
        running.load_policies([policy], given.policy_file)
        if given.trace is not None:
            from loramux_runtime.live.trace_replay import replay

            scales = {"time_scale": given.time_scale, "step_scale": given.step_scale}
            given.say(replay(store, given.trace, base, recompute=given.recompute, seed=given.seed, **scales))
        around = Surroundings(
            choose=given.profile,
            policy_files=[str(real_path(file)) for file in given.policy_file or ()],
            prometheus=given.prometheus,
            tensorboard=given.tensorboard,
            hang_s=given.hang_after,
            stops=signals.training,
            after_policy=signals.hold,
            say=given.say,
            warn=_warn,
        )
        try:
            with running.prints_aside():
                outcome = run_scheduler(store, base, engine, given.settings(policy), around)
        except FolderGone as error:
            # SQLite would write what it has not yet written as it closes, into whatever has come in
            # the place of the queue: the process ends without that
            _warn(str(error))
            sys.stdout.flush()
            os._exit(error.exit_code)
        store.close()
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    if outcome.hopeless:
        return EXIT_NEVER_FITS
    return EXIT_FAILED_JOBS if outcome.failed else 0


def _supervised(given: RunOptions) -> int:
    """Keep a scheduler's process running; return its last exit code."""
    from loramux_runtime.live.state.connection import is_file
    from loramux_runtime.live.state.store import DATABASE, Store, discard
    from loramux_runtime.live.supervisor import supervise
    from loramux_traces.errors import StateError
    from loramux_traces.locking import owner
    from loramux_traces.runfolder import prepare_folder

    state = given.state.absolute()
    made = not is_file(state / DATABASE)
    prepare_folder(state, resume=True, private=True)
    # the folder is made at once: jobs may be submitted while the model is loaded
    Store(state, create=True).close()
    command = [sys.executable, "-m", "loramux_cli.main", *sys.argv[1:], "--no-supervise"]
    code = supervise(command, state, hang_s=given.hang_after, say=_warn)
    if code not in (0, StateError.exit_code) and made and owner(state) is None:
        # nothing stays of a command under which no scheduler came up
        discard(state)
    return code


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """Return what calls that the first time only."""
    left = [call]
    return lambda: left.pop()() if left else None


def _warn(text: str) -> None:
    typer.echo(f"loramux: {text}", err=True)
