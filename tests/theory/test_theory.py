"""The simulator against theory, through the public commands alone.

Every job's turnaround equals an independent reference to 1e-6; means over 10 seeds lie within 4
standard errors of the closed form. `make test` runs a subset; `pytest -m slow tests/theory` the
whole grid.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from ..waiting import run_process
from . import closed_forms as forms
from . import references as ref

Array = NDArray[np.float64]
Folder = Path

JOBS = 20_000
FEW = 8_000
"""Of the runs of `make test` that are compared job by job."""
SEEDS = range(10)
LOADS = (0.5, 0.7, 0.8, 0.9)
GIB = 2**30
CURVE = "linear:0.3,2.5"
phi = ref.linear_curve(0.3, 2.5)


@dataclass(frozen=True)
class Discipline:
    """A policy of the simulator, the flags that make it a textbook queue, and the oracle."""

    policy: str
    flags: tuple[str, ...]
    reference: Callable[[Array, Array], Array]
    mean: Callable[[forms.SizeLaw, float], float]


SEAT = ("--max-resident", "1")
DISCIPLINES = {
    "fcfs": Discipline("fifo", SEAT, ref.lindley, forms.fcfs),
    "sjf": Discipline("sjf", SEAT, ref.sjf, forms.sjf),
    "psjf": Discipline("psjf", SEAT, ref.psjf, forms.psjf),
    "srpt": Discipline("srtf", SEAT, ref.srpt, forms.srpt),
    "las": Discipline("las", SEAT, ref.las, forms.las),
    "ps": Discipline("ps", ("--speedup-curve", "none"), ref.ps, forms.ps),
}
LAWS = {
    law.name: law
    for law in (
        forms.exponential(),
        forms.deterministic(),
        forms.hyperexponential(),
        forms.lognormal(),
        forms.uniform(),
    )
}

# Where the mean of ten runs of 20,000 jobs says nothing (its standard error is up to 8% of it): per
# job only.
MEANINGLESS_MEANS = {("hyperexp", 0.9)}
GRID = [(name, law, rho) for name in DISCIPLINES for law in LAWS for rho in LOADS]
# two-sided 6.3e-5: 0.9% that any of the 130 or so means below is outside by chance
STANDARD_ERRORS = 4.0
SPREAD_RUNS = 60


# --- the commands -------------------------------------------------------------------------------


def loramux(*args: str | Path) -> str:
    """stdout of the `loramux` command, run in this process."""
    from loramux_cli.main import main

    argv, sys.argv = sys.argv, ["loramux", *map(str, args)]
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = 0
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = argv
    assert code in (None, 0), (args, code, stderr.getvalue()[-2000:])
    return stdout.getvalue()


def loramux_process(*args: str | Path) -> str:
    """The same in a process of its own, as a user runs it."""
    start = "import sys; from loramux_cli.main import main; sys.argv[0] = 'loramux'; sys.exit(main())"
    done = run_process([sys.executable, "-c", start, *map(str, args)], env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, (args, done.returncode, done.stderr[-2000:])
    return done.stdout


def generate(out: Path, law: str, rho: float, seed: int, jobs: int = JOBS, servers: int = 1) -> Path:
    """`trace generate`; one file per parameter set and test session."""
    if not out.exists():
        flags: list[str | Path] = ["--kind", "poisson", "--sizes", law, "--rho", str(rho), "--mean-s", "1.0"]
        flags += ["--jobs", str(jobs), "--seed", str(seed), "--out", out]
        loramux("trace", "generate", *flags, *(["--servers", str(servers)] if servers > 1 else []))
    return out


def read_trace(path: Path) -> pd.DataFrame:
    """The trace in (submit, id) order; job ids are the strings they are."""
    frame = pd.read_csv(path, dtype={"job_id": str}, comment="#")
    return frame.sort_values(["submit_s", "job_id"], kind="stable").reset_index(drop=True)


def simulate(
    trace: Path, policy: str, flags: Sequence[str | Path], out: Path, run: Callable[..., str] = loramux
) -> pd.DataFrame:
    """`simulate --ideal`, its jobs in the order of `read_trace`."""
    said = run("simulate", "--trace", trace, "--policy", policy, "--ideal", *flags, "--out", out, "--json")
    found = sorted(out.glob("**/jobs.csv"))
    assert len(found) == 1, found
    jobs = pd.read_csv(found[0], dtype={"job_id": str})
    assert jobs["job_id"].is_monotonic_increasing
    check_summary(json.loads(said), jobs)
    shutil.rmtree(out)  # the grid would fill the disk
    order = read_trace(trace)["job_id"]
    return jobs.set_index("job_id").loc[order].reset_index()


def check_summary(said: dict[str, Any], jobs: pd.DataFrame) -> None:
    """--json tells the same story as jobs.csv."""
    (figures,) = said["runs"]
    done = jobs[jobs["final_state"] == "COMPLETED"]
    assert said["schema_version"] == 1
    assert (figures["jobs"], figures["completed"]) == (len(jobs), len(done))
    assert figures["turnaround_s"]["mean"] == pytest.approx(done["turnaround_time"].mean(), rel=1e-9)
    assert figures["makespan_s"] == pytest.approx(
        done["finish_time"].max() - jobs["submission_time"].min(), rel=1e-9, abs=1e-9
    )
    span = done["finish_time"] - done["submission_time"]
    assert np.allclose(span, done["turnaround_time"], rtol=1e-9, atol=1e-6)


def assert_each_job(jobs: pd.DataFrame, expected: Array) -> None:
    """|turnaround - reference| <= 1e-6 max(1, reference) for every job.

    Says where it first fails.
    """
    got = jobs["turnaround_time"].to_numpy(dtype=float)
    lost = np.isnan(expected)
    assert (jobs["final_state"] == np.where(lost, "REJECTED", "COMPLETED")).all(), jobs["final_state"].value_counts()
    bad = np.flatnonzero(~lost & ~(np.abs(got - expected) <= 1e-6 * np.maximum(1.0, expected)))
    first = jobs["job_id"].iloc[bad[0]] if len(bad) else ""
    assert not len(bad), f"{len(bad)} of {len(got)} jobs differ, first {first}: {got[bad[0]]!r} != {expected[bad[0]]!r}"


def assert_mean(
    means: Sequence[float],
    expected: float,
    law: str,
    rate: float,
    reference: Callable[[Array, Array], Array],
) -> None:
    """Within 4 standard errors.

    The spread of one run's mean comes from more runs of the reference on other streams: ten runs
    would know it to a quarter only, and for skewed sizes underrate it just when their mean is low.
    """
    others = []
    for seed in range(SPREAD_RUNS):
        rng = np.random.default_rng([2024, seed])
        arrival = np.cumsum(rng.exponential(1 / rate, JOBS))
        others.append(reference(arrival, LAWS[law].sample(rng, JOBS)).mean())
    error = float(np.std(others, ddof=1)) / len(means) ** 0.5
    assert abs(np.mean(means) - expected) <= STANDARD_ERRORS * error, (float(np.mean(means)), expected, error)


@pytest.fixture(scope="session")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Where the traces of this session lie, so that all disciplines of a cell share them."""
    return tmp_path_factory.mktemp("traces")


def per_job(
    name: str, law: str, rho: float, seed: int, traces: Folder, out: Path, jobs: int = JOBS
) -> tuple[Array, Array]:
    """One run of one cell, checked job by job; sizes and turnarounds."""
    trace = generate(traces / f"{law}-{rho}-{seed}-of-{jobs}.csv", law, rho, seed, jobs=jobs)
    rows, how = read_trace(trace), DISCIPLINES[name]
    arrival, size = rows["submit_s"].to_numpy(float), rows["duration_s"].to_numpy(float)
    expected = how.reference(arrival, size)
    assert_each_job(simulate(trace, how.policy, how.flags, out), expected)
    return size, expected


# --- the load generator -------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_generator_draws_the_law(law: str, traces: Folder) -> None:
    """Sizes follow the law of the closed form (a Kolmogorov-Smirnov bound).

    Arrivals are Poisson at the load.
    """
    rows = read_trace(generate(traces / f"{law}-0.8-0.csv", law, 0.8, 0))
    size, gaps = np.sort(rows["duration_s"].to_numpy(float)), np.diff(rows["submit_s"].to_numpy(float))
    assert len(size) == JOBS
    if law == "deterministic":
        assert np.allclose(size, 1.0, rtol=1e-12)
    else:
        assert np.abs(1 - LAWS[law].tail(size) - np.arange(JOBS) / JOBS).max() < 2.2 / JOBS**0.5
    gaps = np.sort(gaps)
    assert np.abs(1 - np.exp(-0.8 * gaps) - np.arange(JOBS - 1) / JOBS).max() < 2.2 / JOBS**0.5


# --- one device ---------------------------------------------------------------------------------

QUICK = [
    ("fcfs", "exp", 0.8),
    ("sjf", "hyperexp", 0.8),
    ("psjf", "uniform", 0.9),
    ("srpt", "exp", 0.8),
    ("las", "exp", 0.8),
    ("ps", "hyperexp", 0.8),
]


@pytest.mark.parametrize(("name", "law", "rho"), QUICK)
def test_each_job(name: str, law: str, rho: float, traces: Folder, tmp_path: Path) -> None:
    per_job(name, law, rho, 0, traces, tmp_path / "out", jobs=FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "law", "rho"), GRID)
def test_grid(name: str, law: str, rho: float, traces: Folder, tmp_path: Path) -> None:
    """Every job of ten seeds, and their mean where it says something."""
    means = [float(per_job(name, law, rho, seed, traces, tmp_path / str(seed))[1].mean()) for seed in SEEDS]
    if (law, rho) not in MEANINGLESS_MEANS:
        assert_mean(means, DISCIPLINES[name].mean(LAWS[law], rho), law, rho, DISCIPLINES[name].reference)


def test_as_a_user_runs_it(traces: Folder, tmp_path: Path) -> None:
    """A process of its own gives the same jobs.csv as the call in this one."""
    trace = generate(traces / "small.csv", "exp", 0.8, 3, jobs=500)
    how = DISCIPLINES["srpt"]
    apart = simulate(trace, how.policy, how.flags, tmp_path / "apart", run=loramux_process)
    pd.testing.assert_frame_equal(apart, simulate(trace, how.policy, how.flags, tmp_path / "here"))


# --- ties ---------------------------------------------------------------------------------------


def handmade(template: Path, out: Path, arrival: Array, size: Array, **columns: Array) -> Path:
    """A trace with these arrivals and sizes, all else as in the template."""
    rows = read_trace(template).iloc[[0]].loc[np.repeat(0, len(arrival))].reset_index(drop=True)
    rows["job_id"] = [f"j{i:06d}" for i in range(len(arrival))]
    rows["submit_s"], rows["duration_s"] = arrival, size
    rows.assign(**columns).to_csv(out, index=False)
    return out


@pytest.mark.parametrize("name", DISCIPLINES)
def test_batches_of_equal_jobs(name: str, traces: Folder, tmp_path: Path) -> None:
    """Jobs come in batches and in few sizes: ties go to the earlier arrival, then the smaller id.

    LAS and PS share.
    """
    rng = np.random.default_rng(7)
    arrival = np.repeat(np.cumsum(rng.exponential(6.0, 300)), 4)
    size = rng.choice([0.5, 1.0, 2.0], 1200)
    template = generate(traces / "small.csv", "exp", 0.8, 3, jobs=500)
    trace = handmade(template, tmp_path / "t.csv", arrival, size)
    how = DISCIPLINES[name]
    assert_each_job(simulate(trace, how.policy, how.flags, tmp_path / "out"), how.reference(arrival, size))


@pytest.mark.parametrize("name", ["fcfs", "sjf", "psjf", "srpt"])
def test_completions_at_arrivals(name: str, traces: Folder, tmp_path: Path) -> None:
    """On a grid of whole seconds completions, arrivals and ties fall on one instant."""
    rng = np.random.default_rng(8)
    arrival = np.sort(rng.integers(0, 2400, 1000)).astype(float)
    size = rng.integers(1, 4, 1000).astype(float)
    template = generate(traces / "small.csv", "exp", 0.8, 3, jobs=500)
    trace = handmade(template, tmp_path / "t.csv", arrival, size)
    how = DISCIPLINES[name]
    assert_each_job(simulate(trace, how.policy, how.flags, tmp_path / "out"), how.reference(arrival, size))


# --- several devices ----------------------------------------------------------------------------

SEVERAL: dict[str, tuple[str, Callable[[Array, Array, int], Array]]] = {
    "fcfs": ("fifo", ref.fcfs),
    "sjf": ("sjf", ref.sjf),
    "srpt": ("srtf", ref.srpt),
}


def several(
    name: str, law: str, rho: float, seed: int, devices: int, traces: Folder, out: Path, jobs: int = JOBS
) -> float:
    trace = generate(traces / f"{law}-{rho}-{seed}-{devices}-of-{jobs}.csv", law, rho, seed, jobs=jobs, servers=devices)
    rows, (policy, reference) = read_trace(trace), SEVERAL[name]
    expected = reference(rows["submit_s"].to_numpy(float), rows["duration_s"].to_numpy(float), devices)
    flags = ("--devices", f"{devices}xa100-80g", *SEAT)
    assert_each_job(simulate(trace, policy, flags, out), expected)
    return float(expected.mean())


@pytest.mark.parametrize("name", SEVERAL)
def test_each_job_on_four_devices(name: str, traces: Folder, tmp_path: Path) -> None:
    several(name, "exp", 0.8, 0, 4, traces, tmp_path / "out", jobs=FEW)


@pytest.mark.parametrize("name", SEVERAL)
def test_batches_on_three_devices(name: str, traces: Folder, tmp_path: Path) -> None:
    """Times are multiples of 1/64 s, so that the reference is exact.

    No tie in it hangs on rounding.
    """
    rng = np.random.default_rng(9)
    arrival = np.repeat(np.cumsum(rng.integers(1, 256, 300)) / 64, 4)
    size = rng.choice([0.5, 1.0, 2.0], 1200)
    trace = handmade(generate(traces / "small.csv", "exp", 0.8, 3, jobs=500), tmp_path / "t.csv", arrival, size)
    policy, reference = SEVERAL[name]
    done = simulate(trace, policy, ("--devices", "3xa100-80g", *SEAT), tmp_path / "out")
    assert_each_job(done, reference(arrival, size, 3))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 16])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SEVERAL)
def test_grid_of_several_devices(name: str, law: str, devices: int, traces: Folder, tmp_path: Path) -> None:
    for rho in LOADS:
        several(name, law, rho, 0, devices, traces, tmp_path / str(rho))


@pytest.mark.slow
@pytest.mark.parametrize("rho", LOADS)
def test_erlang_c(rho: float, traces: Folder, tmp_path: Path) -> None:
    means = [several("fcfs", "exp", rho, seed, 4, traces, tmp_path / str(seed)) for seed in SEEDS]
    assert_mean(means, forms.mmc(1.0, rho, 4), "exp", 4 * rho, lambda a, s: ref.fcfs(a, s, 4))


# --- co-running ---------------------------------------------------------------------------------


def co_running(law: str, rho: float, seed: int, traces: Folder, out: Path, jobs: int = JOBS) -> float:
    """Unlimited residents that share phi(n): every job starts at once."""
    trace = generate(traces / f"{law}-{rho}-{seed}-of-{jobs}.csv", law, rho, seed, jobs=jobs)
    rows = read_trace(trace)
    expected = ref.shared(rows["submit_s"].to_numpy(float), rows["duration_s"].to_numpy(float), phi)
    done = simulate(trace, "fifo", ("--speedup-curve", CURVE), out)
    assert_each_job(done, expected)
    assert (done["waiting_time"] == 0).all()
    return float(expected.mean())


def test_each_job_co_running(traces: Folder, tmp_path: Path) -> None:
    """Load 1.2 of one job alone, within the 2.5 that co-running reaches."""
    co_running("hyperexp", 1.2, 0, traces, tmp_path / "out", jobs=FEW)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.8, 1.2, 1.8])
@pytest.mark.parametrize("law", LAWS)
def test_co_running_grid(law: str, rate: float, traces: Folder, tmp_path: Path) -> None:
    """The mean depends on the size law through its mean alone."""
    means = [co_running(law, rate, seed, traces, tmp_path / str(seed)) for seed in SEEDS]
    assert_mean(means, forms.co_running(1.0, rate, phi), law, rate, lambda a, s: ref.shared(a, s, phi))


# --- memory without a queue ---------------------------------------------------------------------

TURN_AWAY = '''\
"""Admit what fits, turn away the rest."""

from loramux_policies import Order, Plan, Policy, register


@register("turnaway")
class TurnAway(Policy):
    order = Order(key=lambda job: (job.submit_s, job.job_id))

    def place(self, view) -> Plan:
        plan = view.plan()
        for job in view.waiting(view.n_waiting):
            device = next(plan.candidates(job.job_id), None)
            if device is None:
                plan.reject(job.job_id, "full", job.own_bytes, plan.free_bytes(0))
            else:
                plan.start(job.job_id, device)
        return plan
'''
CLASSES = [(3.0, 6), (2.0, 10), (1.0, 24)]  # offered load, GiB


def loss_run(law: str, jobs: int, seed: int, traces: Folder, out: Path) -> None:
    """Three classes on 80 GiB: every job as in the loss reference.

    Blocking and memory use as Kaufman-Roberts.
    """
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / 6, jobs))
    size = LAWS[law].sample(rng, jobs)
    kind = rng.choice(3, jobs, p=[a / 6 for a, _ in CLASSES])
    need = np.array([b for _, b in CLASSES])[kind] * GIB
    out.mkdir()
    (out / "policy.py").write_text(TURN_AWAY)
    template = generate(traces / "small.csv", "exp", 0.8, 3, jobs=500)
    trace = handmade(template, out / "t.csv", arrival, size, mem_bytes=need)
    flags = ("--policy-file", out / "policy.py", "--speedup-curve", "free", "--devices", "1xa100-80g")
    done = simulate(trace, "turnaway", flags, out / "run", run=loramux_process)
    assert_each_job(done, ref.loss(arrival, size, need, 80 * GIB))

    lost = (done["final_state"] == "REJECTED").to_numpy()
    blocking, utilisation = forms.kaufman_roberts(80, CLASSES)
    assert [lost[kind == k].mean() for k in range(3)] == pytest.approx(blocking, abs=0.01)
    used = np.sum((need * size)[~lost]) / (80 * GIB * arrival[-1])
    assert used == pytest.approx(utilisation, abs=0.02)


def test_kaufman_roberts(traces: Folder, tmp_path: Path) -> None:
    loss_run("exp", 25_000, 1, traces, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_kaufman_roberts_for_any_sizes(law: str, traces: Folder, tmp_path: Path) -> None:
    loss_run(law, 200_000, 2, traces, tmp_path / "out")
