"""`loramux run`: the live scheduler, on one device or on those of a Ray cluster."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_cli.device_choice import choose_profile, need_torch, profile_name
from loramux_cli.live_engine import EngineChoice, opened
from loramux_cli.live_watch import Watchers, memory_guard, watched

if TYPE_CHECKING:
    from loramux_cli.live_engine import Opened
    from loramux_runtime.jobs.jobs_file import BaseConfig
    from loramux_runtime.live.state.store import Store

EXIT_FAILED_JOBS = 3
EXIT_NEVER_FITS = 4
State = Annotated[Path, typer.Option(help="State folder of the scheduler.")]


def run_command(
    state: State,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder, a shape (random weights), or a jobs.yaml. Needed the first time."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16, of a named shape or a folder.")] = "fp32",
    policy: Annotated[str | None, typer.Option(help="Policy, as for simulate. Default: the last, or aspen.")] = None,
    policy_file: o.PolicyFile = None,
    device: o.TorchDevice = "auto",
    device_profile: o.ProfileName = None,
    allow_other: o.AllowOther = False,
    memory: o.JobMemory = None,
    engine: Annotated[
        str, typer.Option(help="local: one device, in this process; ray: an actor for each device (extra ray).")
    ] = "local",
    devices: Annotated[
        int | None, typer.Option(min=1, help="With ray: how many. Default: all GPUs of the cluster, or one CPU.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="With ray: a running cluster (it must ask for a token). Default: one of its own.")
    ] = None,
    max_resident: o.Residents = None,
    recompute: o.Recompute = False,
    threads: o.Threads = None,
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds of training that a crash may cost (more where saving is slow).")
    ] = 60.0,
    exit_when_idle: Annotated[
        bool, typer.Option("--exit-when-idle", help="End when every job has ended; default: wait for more.")
    ] = False,
    on_policy_error: Annotated[
        str, typer.Option(help="A policy that fails or stalls: fallback (go on under fifo) or exit.")
    ] = "fallback",
    hang_after: Annotated[
        float, typer.Option(min=1.0, help="Seconds without a sign of life after which the process is started again.")
    ] = 600.0,
    trace: Annotated[
        Path | None, typer.Option(help="Replay this trace on made-up rows of its lengths, and end when its jobs have.")
    ] = None,
    time_scale: Annotated[float, typer.Option(min=1e-6, help="With --trace: arrivals so many times as fast.")] = 1.0,
    step_scale: Annotated[float, typer.Option(min=1e-9, help="With --trace: every job's steps times this.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="With --trace: seed of row lengths and tokens.")] = 0,
    record: Annotated[bool, typer.Option("--record", help="Log every fused step too.")] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise/--no-supervise", help="Start the scheduler again when its process dies.")
    ] = True,
    prometheus: Annotated[
        Path | None, typer.Option(help="Keep a Prometheus text file (*.prom, for node_exporter's textfile collector).")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write training curves for TensorBoard into this folder (extra tensorboard).")
    ] = None,
    quiet: o.Quiet = False,
) -> None:
    """Schedule and train jobs as they are submitted, until drained or stopped. State survives in --state."""
    need_torch()
    if on_policy_error not in ("fallback", "exit"):
        from loramux_traces.errors import UsageError

        raise UsageError(f"--on-policy-error is fallback or exit, not {on_policy_error[:40]!r}")
    chosen = EngineChoice(engine=engine, devices=devices, address=ray_address, device=device, threads=threads)
    if supervise:
        raise typer.Exit(_supervised(state, hang_after, quiet=quiet))
    from loramux_cli import running
    from loramux_runtime.live.settings import LiveSettings
    from loramux_runtime.live.state.store import Store
    from loramux_runtime.live.supervisor import RESTARTED
    from loramux_traces.locking import owned
    from loramux_traces.runfolder import prepare_folder

    prepare_folder(state, resume=True)
    with owned(state):
        store = Store(state, create=True)
        model = _base_of(store, base, dtype)
        _same_weights(store, model)
        last = store.fact("policy_text")
        if policy is None or (last and RESTARTED in os.environ):
            # after a crash: what set-policy has acknowledged, not what it was started with
            policy = last or "aspen"
            _need_file(store, policy, policy_file)
        running.load_policies([policy], policy_file)
        if trace is not None:
            from loramux_cli.live_trace import replay

            scales = {"time_scale": time_scale, "step_scale": step_scale}
            said = replay(store, trace, model, recompute=recompute, seed=seed, **scales)
            if not quiet:
                typer.echo(said, err=True)
        settings = LiveSettings(
            policy=policy,
            max_resident=float("inf") if max_resident is None else float(max_resident),
            recompute=recompute,
            checkpoint_s=checkpoint_every,
            exit_when_idle=exit_when_idle or trace is not None,
            on_policy_error="exit" if on_policy_error == "exit" else "fallback",
            record=record,
        )
        with watched(store, prometheus, tensorboard) as watchers:
            if not quiet:
                typer.echo(f"loading {model.path or model.shape or 'a tiny model'}", err=True)
            with opened(chosen, model, recompute=recompute) as found:
                profile = choose_profile(found.where, device_profile, memory, allow_other=allow_other, card=found.card)
                name = profile_name(found.where, device_profile, found.card)
                _keep_profile(store, name)
                files = [str(file.resolve()) for file in policy_file or ()]
                code = _serve(store, settings, model, found, profile, watchers, files, hang_s=hang_after, quiet=quiet)
        store.close()
    raise typer.Exit(code)


def _supervised(state: Path, hang_s: float, *, quiet: bool) -> int:
    from loramux_runtime.live.state.store import DATABASE, Store, discard
    from loramux_runtime.live.supervisor import supervise
    from loramux_traces.errors import StateError
    from loramux_traces.locking import owner
    from loramux_traces.runfolder import prepare_folder

    def say(text: str) -> None:
        typer.echo(f"loramux: {text}", err=True)

    made = not (state / DATABASE).exists()
    prepare_folder(state, resume=True)
    Store(state, create=True).close()  # at once: jobs may be submitted while the model is loaded
    command = [sys.executable, "-m", "loramux_cli.main", *sys.argv[1:], "--no-supervise"]
    code = supervise(command, state, hang_s=hang_s, say=say)
    if code not in (0, StateError.exit_code) and made and owner(state) is None:
        discard(state)  # nothing stays of a command under which no scheduler came up
    return code


def _need_file(store: Store, policy: str, given: list[Path] | None) -> None:
    """The last policy came from a file: that has to be named again (it is code, and so never run unasked)."""
    from loramux_policies.registry import names
    from loramux_traces.errors import UsageError

    files = store.fact("policy_files", [])
    if files and not given and policy.partition(":")[0] not in names():
        raise UsageError(
            f"the last policy, {policy}, came from {', '.join(files)}: give --policy-file again, or another --policy"
        )


def _base_of(store: Store, base: str | None, dtype: str) -> BaseConfig:
    """The base model of the state folder: said once, and the same from then on."""
    from loramux_runtime.jobs.jobs_file import BaseConfig
    from loramux_traces.errors import UsageError
    from loramux_traces.filesafe import plain

    known = store.fact("base")
    if base is None:
        if known is None:
            raise UsageError("--base is needed the first time: a model folder, a shape, or a jobs.yaml")
        return BaseConfig.model_validate(known)
    wanted = _parse_base(base, dtype)
    document = plain(wanted.model_dump(mode="json"))
    if known is None or store.fact("starts") is None:  # no scheduler has come up on it yet
        store.set_facts(base=document)
    elif document != known:
        name = store.fact("base_model") or known.get("shape") or known.get("path") or "a model of its own"
        raise UsageError(f"{store.folder}: its jobs are on another base model ({name}); use another --state")
    return wanted


def _same_weights(store: Store, base: BaseConfig) -> None:
    """UsageError where the folder of the base model has come to hold another since the first jobs began."""
    from loramux_runtime.jobs.fingerprint import fingerprint
    from loramux_traces.errors import UsageError

    # the loader says what is wrong with it
    if base.path is None or not (base.path / "config.json").is_file():
        return
    found, known = fingerprint(base.path), store.fact("base_sha256")
    if known is not None and known != found and store.fact("starts") is not None:
        raise UsageError(f"{base.path}: is not the model that the jobs of {store.folder} began on; use another --state")
    store.set_facts(base_sha256=found)


def _parse_base(text: str, dtype: str) -> BaseConfig:
    from loramux_profiles.shape_catalog import shape_names
    from loramux_runtime.jobs.jobs_file import BaseConfig, read_base
    from loramux_traces.errors import UsageError

    path = Path(text)
    if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
        return read_base(path)
    if dtype not in ("fp32", "bf16"):
        raise UsageError(f"--dtype is fp32 or bf16, not {dtype[:20]!r}")
    kind: Any = dtype
    if path.is_dir():
        return BaseConfig(path=path.resolve(), dtype=kind)
    if text not in shape_names():
        raise UsageError(f"--base {text!r}: no such folder, and no shape of that name ({', '.join(shape_names())})")
    return BaseConfig(shape=text, dtype=kind)


def _serve(
    store: Store,
    settings: Any,
    model: BaseConfig,
    found: Opened,
    profile: Any,
    watchers: Watchers,
    policy_files: list[str],
    *,
    hang_s: float,
    quiet: bool,
) -> int:
    from loramux_cli import running
    from loramux_policies.registry import create
    from loramux_runtime.live.service import LiveService
    from loramux_runtime.live.state.run_folder import write_results
    from loramux_runtime.live.supervisor import RESTARTED

    def warn(text: str) -> None:
        typer.echo(f"loramux: {text}", err=True)

    with running.prints_aside():
        service = LiveService(
            store,
            settings,
            create(settings.policy),
            profile,
            base=found.base,
            pool=found.pool,
            hang_s=hang_s,
            tokenizer_path=model.path,
            warn=warn,
            rss_before=found.rss_before,
            watch=None if found.pool is not None else memory_guard(found.where, profile).poll,
            on_flush=watchers.on_flush,
            on_record=watchers.on_record,
        )
        if RESTARTED not in os.environ:
            store.set_facts(draining=False)  # who starts a scheduler wants jobs to begin
        store.set_facts(policy_text=settings.policy, policy_files=policy_files)
        if not quiet:
            typer.echo(f"ready: {settings.policy} on {found.device}; submit jobs to {store.folder}", err=True)
        outcome = service.play()
        if not quiet:
            typer.echo(_ended(store), err=True)
    write_results(store, manifest(settings, store, profile))
    if outcome.stopped_by is not None:
        return 128 + outcome.stopped_by
    if outcome.hopeless:
        return EXIT_NEVER_FITS
    return EXIT_FAILED_JOBS if outcome.failed else 0


def _ended(store: Store) -> str:
    """What became of the jobs of the folder; why of the latest that failed."""
    from collections import Counter

    from loramux_cli.status_view import MOST_FAILURES
    from loramux_runtime.live.state.job_rows import OPEN
    from loramux_traces.errors import printable

    jobs = store.jobs()
    counts = Counter("still to do" if job["state"] in OPEN else job["state"] for job in jobs)
    lines = ["ended: " + (", ".join(f"{n:,} {state}" for state, n in counts.items()) or "no job")]
    failed = [job for job in jobs if job["state"].startswith(("FAILED", "REJECTED", "UNSCHED"))]
    lines += [f"  {job['job_id']}: {job['state']}: {printable(job['reason'], 200)}" for job in failed[-MOST_FAILURES:]]
    return "\n".join(lines)


def _keep_profile(store: Store, name: str) -> None:
    from loramux_profiles.devices import device_file
    from loramux_runtime.live.state.store import PROFILE
    from loramux_traces.filesafe import write_text

    write_text(store.folder / PROFILE, device_file(name).read_text(encoding="utf-8"))


def manifest(settings: Any, store: Store, profile: Any) -> dict[str, Any]:
    """What the run folder says of itself."""
    from importlib.metadata import version

    packages = ("loramux", "torch", "transformers", "numpy")
    trace = store.fact("trace") or _submitted(store)
    policy = store.fact("policy_text") or settings.policy
    events = list(store.events())
    changes = sum(event["event"] in ("policy", "policy-error") for event in events)
    return {
        "policy": policy,
        "policy_params": policy,
        "policy_changes": changes,
        "interruptions": sum(event["event"] == "scheduler" for event in events) - 1,
        "seed": trace.get("seed", 0),
        "time_scale": trace.get("time_scale", 1.0),
        "step_scale": trace.get("step_scale", 1.0),
        "argv": list(sys.argv),
        "trace": trace,
        "devices": [store.fact("device", "")],
        "base_model": store.fact("base_model", ""),
        "profile_sha256": profile.digest,
        "memory_measured": store.fact("memory_bytes") is not None,
        "memory_bytes": profile.parameters["memory_bytes"].value,
        "max_resident": None if settings.max_resident == float("inf") else int(settings.max_resident),
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
    }


def _submitted(store: Store) -> dict[str, Any]:
    """Jobs that came by `submit`: what they are says which, so that other queues' are not taken for the same."""
    import hashlib

    jobs = store.jobs()
    digest = hashlib.sha256("".join(job["config"] for job in jobs).encode()).hexdigest()
    return {"name": "submitted", "sha256": digest, "provenance": "", "jobs": len(jobs)}
