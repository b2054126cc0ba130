"""This module is `loramux train`: it trains the jobs of a file together on one device."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loramux_cli import options as o
from loramux_cli import train_going_on as going_on
from loramux_cli import train_view as view
from loramux_cli.device_choice import choose_profile, hush_weight_bars, need_torch
from loramux_cli.option_object import takes

if TYPE_CHECKING:
    from loramux_policies.policy import Policy
    from loramux_profiles.devices import DeviceProfile
    from loramux_runtime.fused.base_model import BaseModel
    from loramux_runtime.jobs.jobs_file import JobsFile
    from loramux_runtime.train.run import TrainResult, TrainRun
    from loramux_runtime.train.signals import StopSignals

EXIT_FAILED_JOBS = 3
EXIT_NEVER_FITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Holds the options of `loramux train`."""

    jobs: Annotated[Path, typer.Argument(help="jobs.yaml: the base model and the jobs (runtime/examples has some).")]
    policy: Annotated[str, typer.Option(help="Policy, as for simulate.")] = "aspen"
    policy_file: o.PolicyFile = None
    device: o.TorchDevice = "auto"
    device_profile: o.ProfileName = None
    allow_other: o.AllowOther = False
    memory: o.JobMemory = None
    max_resident: o.Residents = None
    recompute: o.Recompute = False
    threads: o.Threads = None
    record: Annotated[
        bool,
        typer.Option("--record", help="Write every fused step into events.jsonl too, for loramux.replay."),
    ] = False
    checkpoint_every: Annotated[
        float, typer.Option(min=0.0, help="Seconds of training that a crash may cost (more where saving is slow).")
    ] = 60.0
    out: Annotated[Path, typer.Option(help="Folder for results and adapters.")] = Path("train")
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in --out, with the same bits on CPU.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check jobs, data, base model and memory; train and write nothing.")
    ] = False
    plots: Annotated[bool, typer.Option("--plots", help="Draw charts into --out.")] = False
    as_json: o.AsJson = False
    quiet: o.Quiet = False
    force: o.Force = False

    @property
    def seats(self) -> float:
        """Most jobs on the device at a time."""
        return float("inf") if self.max_resident is None else float(self.max_resident)

    def depended_on(self) -> dict[str, Any]:
        """Return the options that decide what is trained, and with which bits."""
        names = ("policy", "device_profile", "memory", "max_resident", "recompute", "threads", "record")
        return {name: getattr(self, name) for name in names}

    def say(self, text: str) -> None:
        """Print how the run goes on, unless told to be quiet."""
        if not self.quiet:
            typer.echo(text, err=True)


@takes(TrainOptions)
def train_command(given: TrainOptions) -> None:
    """Train many adapters in one fused step over one frozen base model, each as if alone.

    Ctrl-C and SIGTERM finish the step and save; --resume goes on from there.
    """
    need_torch()
    hush_weight_bars(quiet=given.quiet)
    made = [folder for folder in (given.out, *given.out.parents) if not folder.exists()]
    from loramux_runtime.train.signals import StopSignals

    with StopSignals(lambda number: _nothing_trained(given, number, made)) as signals:
        code = _check(given) if given.dry_run else _train(given, signals)
        if signals.got:
            code = 128 + signals.got[0]
    raise typer.Exit(code)


def _nothing_trained(given: TrainOptions, number: int, made: list[Path]) -> None:
    """Say so, and leave --out as it was: the process ends when this has returned."""
    import signal

    from loramux_traces.locking import LOCK, owner

    how = "interrupted" if number == signal.SIGINT else "terminated"
    what = "nothing more was trained" if given.resume else "nothing was trained"
    os.write(2, f"loramux: {how}: {what}\n".encode())
    if owner(given.out) == os.getpid():
        (given.out / LOCK).unlink(missing_ok=True)
        for folder in made:
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def _check(given: TrainOptions) -> int:
    """Check everything and print what would be trained; return the exit code."""
    from loramux_cli.train_check import show
    from loramux_runtime.jobs.bases import outline_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.train.checks import check_jobs
    from loramux_traces.errors import StateError
    from loramux_traces.runfolder import check_folder

    policy, where, profile = _choices(given)
    file = read_jobs_file(given.jobs)
    try:
        check_folder(given.out, force=given.force, also=going_on.ALSO, resuming=going_on.RESUMING)
    except StateError as error:
        given.say(f"note: the run itself would be refused: {error}")
    seats = min(given.seats, policy.seats)
    checked = check_jobs(file, outline_base(file.base), profile, recompute=given.recompute, max_resident=seats)
    show(checked, str(where), as_json=given.as_json, quiet=given.quiet)
    return EXIT_NEVER_FITS if checked.never else 0


def _choices(given: TrainOptions) -> tuple[Policy, Any, DeviceProfile]:
    """Check the options: policy, device, and the profile that decisions are made with."""
    from loramux_cli import running
    from loramux_policies.registry import create
    from loramux_runtime.fused.torch_devices import choose_device
    from loramux_runtime.train.run import check_policy
    from loramux_traces.errors import UsageError

    if given.resume and (given.force or given.dry_run):
        other = "--force starts anew" if given.force else "--dry-run writes nothing"
        raise UsageError(f"--resume goes on, {other}: give one of them")
    running.load_policies([given.policy], given.policy_file)
    policy = create(given.policy)
    check_policy(policy)
    where = choose_device(given.device)
    return policy, where, choose_profile(where, given.device_profile, given.memory, allow_other=given.allow_other)


def _train(given: TrainOptions, signals: StopSignals) -> int:
    """Train, or go on; return the exit code."""
    from loramux_cli import running
    from loramux_runtime.jobs.bases import outline_base
    from loramux_runtime.jobs.jobs_file import read_jobs_file
    from loramux_runtime.train.checks import check_jobs
    from loramux_runtime.train.progress import Progress
    from loramux_runtime.train.run import TrainRun, grouped_notes
    from loramux_runtime.train.settings import settings_of
    from loramux_traces.errors import LoramuxError, StateError
    from loramux_traces.results import UNFINISHED
    from loramux_traces.runfolder import prepare_folder

    policy, where, profile = _choices(given)
    file = read_jobs_file(given.jobs)
    with running.hold(given.out):
        progress = going_on.earlier_run(given.out, resume=given.resume, force=given.force)
        outline = outline_base(file.base)
        settings = settings_of(file, profile, device=str(where), **given.depended_on())
        if given.resume and not going_on.may_go_on(given.out, settings, progress, given.say):
            return 0
        earlier = None if progress is None else progress.earlier()
        checked = check_jobs(
            file,
            outline,
            profile,
            recompute=given.recompute,
            ended=() if earlier is None else earlier.ended,
            rendered_at=None if progress is None else progress.begun_at,
        )
        if progress is not None:
            going_on.check_rows(given.out, progress, checked)
        for name, why in checked.never.items():
            given.say(f"note: {name} never fits: {why}")
        for note in grouped_notes(checked.prepared, warnings_only=True):
            given.say(f"note: {note}")
        base = _loaded(given, file, outline, where, needed=bool(checked.costs))
        if given.force:
            prepare_folder(given.out, force=True, also=going_on.ALSO)
        with view.progress_bar(file, quiet=given.quiet) as tell, running.prints_aside():
            if progress is None:
                progress = Progress.begin(given.out, settings, checked.data_facts, checked.rendered_at)
            run = TrainRun(
                file,
                policy,
                profile,
                base=base,
                prepared=checked.prepared,
                adapters_dir=given.out / "adapters",
                progress=progress,
                earlier=earlier,
                checkpoint_s=given.checkpoint_every,
                recompute=given.recompute,
                max_resident=given.seats,
                log=tell,
                warn=_warn,
                record=given.record,
            )
            ended = "" if earlier is None else f" ({len(earlier.ended):,} ended before)"
            given.say(f"training {len(run.specs)} jobs under {given.policy}{ended}")
            try:
                result = run.play(signals.training, signals.hold)
            except BaseException:
                _warn(view.standing(progress, "the run was cut"))
                raise
        try:
            _write(given, profile, run, result, settings)
        except LoramuxError:
            _warn(view.standing(progress, "the results cannot be written"))
            raise
        whole = not (result.jobs["final_state"] == UNFINISHED).any()
        if whole:
            progress.remove()
        _report(given, file, result)
        if not whole:
            _warn(view.standing(progress, _how(signals.got, result)))
        lost = [job_id for job_id in view.completed(result) if not (given.out / "adapters" / job_id).is_dir()]
    if lost:
        raise StateError(f"{given.out}: adapters are gone that were written there: {', '.join(lost[:20])}")
    if result.hopeless:
        return EXIT_NEVER_FITS
    return EXIT_FAILED_JOBS if result.summary["failed"] else 0


def _loaded(given: TrainOptions, file: JobsFile, outline: BaseModel, where: Any, *, needed: bool) -> BaseModel:
    """Return the base model; its outline alone where no job is left that it could train."""
    from dataclasses import replace

    from loramux_runtime.fused.memory_meter import keep_freed_memory
    from loramux_runtime.fused.torch_devices import set_threads
    from loramux_runtime.jobs.bases import open_base

    if not needed:
        return replace(outline, device=where)
    given.say(f"loading {file.base.path or file.base.shape or 'a tiny model'} on {where}")
    base = open_base(file.base, where)
    set_threads(given.threads, base.sites.hidden)
    if where.type == "cpu":
        keep_freed_memory()
    return base


def _how(got: list[int], result: TrainResult) -> str:
    import signal

    if not got:
        return "not every job is finished"
    how = "interrupted" if got[0] == signal.SIGINT else "terminated"
    return how if result.training else f"{how} before the first step, so that nothing was trained"


def _report(given: TrainOptions, file: JobsFile, result: TrainResult) -> None:
    """Print the results, draw the charts, and say what should be known."""
    if given.plots:
        from loramux_cli.simulate import draw

        draw(given.out, quiet=given.quiet)
    if given.as_json:
        from loramux_traces.filesafe import json_text

        report = {"schema_version": 1, "runs": [_entry(given.policy, result)]}
        typer.echo(json_text(report, indent=2))
    else:
        view.table(file, result)
    for note in result.summary["notes"]:
        given.say(f"note: {note}")
    for ended in result.jobs[result.jobs["reason"] != ""].to_dict("records"):
        given.say(f"note: {ended['job_id']}: {ended['final_state']}: {ended['reason']}")
    if result.prediction is not None and result.prediction["steps"]:
        given.say(view.predicted(result.prediction))
    given.say(f"adapters and results are in {given.out}")


def _entry(policy: str, result: TrainResult) -> dict[str, Any]:
    return {"policy": policy, "seed": 0, **result.summary, "evaluation": result.scores, "prediction": result.prediction}


def _write(
    given: TrainOptions, profile: DeviceProfile, run: TrainRun, result: TrainResult, settings: dict[str, Any]
) -> None:
    import hashlib
    from importlib.metadata import version

    from loramux_runtime.train.settings import shortened
    from loramux_traces.filesafe import write_jsonl
    from loramux_traces.runfolder import write_run

    write_jsonl(given.out / "training.jsonl", result.training)
    packages = ("loramux", "torch", "transformers", "numpy")
    write_run(
        given.out,
        manifest={
            "kind": "real",
            "policy": given.policy,
            "policy_params": given.policy,
            "seed": 0,
            "argv": list(sys.argv),
            "trace": {
                "name": given.jobs.name,
                "sha256": hashlib.sha256(given.jobs.read_bytes()).hexdigest(),
                "provenance": "",
                "jobs": len(result.jobs),
            },
            "devices": [str(run.model.base.device)],
            "base_model": run.model.base.name,
            "profile_sha256": profile.digest,
            "interruptions": result.interruptions,
            "settings": shortened(settings),
            "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
            "origin": "measured",
        },
        jobs=result.jobs,
        events=result.events,
        summary=_entry(given.policy, result),
        timeline=result.timeline,
    )


def _warn(text: str) -> None:
    typer.echo(f"loramux: {text}", err=True)
