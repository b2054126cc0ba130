"""This module is `loramux sweep`: it runs policies x loads x seeds into one tidy table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from loramux_cli import options as o
from loramux_cli.settings import settings
from loramux_cli.simulate import EXIT_NEVER_FITS, _progress


def sweep_command(
    out: Annotated[Path, typer.Option(help="Folder for results.csv and manifest.json.")],
    trace: o.Trace = None,
    generate: Annotated[
        str | None,
        typer.Option(help="Draw a trace per seed instead: KIND:name=value,... as in poisson:jobs=2000,rho=0.8"),
    ] = None,
    policy: o.PolicyName = None,
    policy_file: o.PolicyFile = None,
    load: Annotated[
        list[float] | None, typer.Option(help="Offered load; scales the inter-arrival times. Repeatable.")
    ] = None,
    seeds: o.Seeds = 1,
    devices: o.Devices = None,
    device_profile: o.DeviceProfile = None,
    allow_other: o.AllowOther = False,
    fusion: o.Fusion = "packed",
    fidelity: o.Fidelity = "rate",
    max_resident: o.MaxResident = None,
    ideal: o.Ideal = False,
    speedup_curve: o.SpeedupCurve = None,
    prediction_error: o.PredictionError = 0.0,
    multi_gpu: o.MultiGpu = "gang",
    warmup: o.Warmup = 0.0,
    workers: Annotated[int, typer.Option(help="Runs at a time; -1: one per core.")] = -1,
    engine: Annotated[
        str, typer.Option(help="local: processes on this host; ray: of a Ray cluster (extra ray).")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="With ray: a running cluster (it must ask for a token). Default: one of its own.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Draw charts into --out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the rows of an interrupted sweep.")] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    force: o.Force = False,
) -> None:
    """Run policies at several loads and seeds on the same jobs; resumable.

    There is one row a run in results.csv. The exit code is that of simulate: 4 where a job fits no
    device in any of the runs.
    """
    from loramux_cli import running
    from loramux_cli.sweep_view import show_sweep, sweep_report, texts
    from loramux_policies.errors import PolicyError
    from loramux_simulator import SimOptions
    from loramux_simulator.sweep import SweepPlan, sweep
    from loramux_traces.errors import UsageError
    from loramux_traces.filesafe import write_json
    from loramux_traces.runfolder import prepare_folder

    if engine not in ("local", "ray"):
        raise UsageError(f"--engine is local or ray, not {engine[:40]!r}")
    if ray_address is not None and engine == "local":
        raise UsageError("--ray-address is for --engine ray")
    if workers != -1 and workers < 1:
        raise UsageError(f"--workers must be at least 1, or -1 for one per core, not {workers}")
    if trace is not None and generate is not None:
        raise UsageError("give --trace or --generate, not both")
    names = running.load_policies(policy, policy_file)
    chosen: dict[str, Any] = {
        "fusion": fusion,
        "fidelity": fidelity,
        "max_resident": max_resident,
        "ideal": ideal,
        "speedup_curve": speedup_curve,
        "prediction_error": prediction_error,
        "multi_gpu": multi_gpu,
        "warmup": warmup,
    }
    SimOptions(**chosen)
    jobs = _generated(generate) if generate is not None else running.load_trace(trace)
    plan = SweepPlan(
        trace=jobs,
        policies=tuple(names),
        devices=running.load_devices(
            devices, device_profile, sample=trace is None and generate is None, allow_other=allow_other
        ),
        seeds=tuple(range(seeds)),
        loads=tuple(load) if load else (None,),
        policy_files=tuple(path.absolute() for path in policy_file or ()),
        options=chosen,
    )
    with running.hold(out):
        resuming = "--resume goes on with an interrupted sweep"
        prepare_folder(out, force=force, resume=resume, also=("results.csv",), resuming=resuming)
        total = len(plan.points())
        with (
            _backend(engine, ray_address) as backend,
            _progress("sweep", total, quiet=quiet) as tell,
            running.prints_aside(),
        ):
            table = sweep(plan, out=out, n_jobs=workers, backend=backend, resume=resume, progress=tell)
        report = sweep_report(plan, table)
        if not report["intervals"]:
            raise PolicyError("\n".join(dict.fromkeys(row["error"] for row in report["policy_errors"])))
        write_json(out / "summary.json", report)
        if plots:
            from loramux_analysis.load import load as load_results
            from loramux_analysis.plots import draw_charts

            draw_charts(load_results([out]), out / "plots", (), tell=lambda line: None)
        if as_json:
            from loramux_traces.filesafe import json_text

            typer.echo(json_text({**report, "rows": table.to_dict(orient="records")}, indent=2))
        else:
            show_sweep(report)
        failed = report["policy_errors"]
        for row in failed:
            typer.echo(f"loramux: {row['policy']} failed in {row['runs']} runs: {row['error']}", err=True)
        if not quiet:
            typer.echo(f"{len(table)} runs in {out / 'results.csv'}", err=True)
    if failed:
        raise typer.Exit(PolicyError.exit_code)
    if any(texts(table, "unfit_jobs")):
        raise typer.Exit(EXIT_NEVER_FITS)


@contextmanager
def _backend(engine: str, address: str | None) -> Iterator[str | None]:
    """Yield the name of joblib's backend; UsageError where Ray is not installed."""
    if engine == "local":
        yield None
        return
    import importlib

    from loramux_runtime.live.drive.ray_cluster import RayCluster

    cluster = RayCluster(address)
    try:
        importlib.import_module("ray.util.joblib").register_ray()
        yield "ray"
    finally:
        cluster.close()


def _generated(text: str) -> Any:
    from loramux_simulator.sweep import Generated

    kind, _, rest = text.partition(":")
    given = settings((part for part in rest.split(",") if part), "--generate", allowed=("jobs",))
    parameters = {name: _value(value) for name, value in given.items()}
    return Generated(kind=kind, parameters=parameters)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
