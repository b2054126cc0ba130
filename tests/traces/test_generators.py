"""Generators: exact reproducibility by (seed, index), moments of the laws, the shipped sample."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loramux_traces import Trace, UsageError, generate, read_trace, sample_path, write_trace
from loramux_traces.generators import KINDS, get_generator
from loramux_traces.generators.gavel import MEAN_S
from loramux_traces.generators.poisson import parse_bytes
from loramux_traces.lora_mix import LoraMix, parse_shares
from loramux_traces.sample import JOBS, make_sample
from loramux_traces.sampling import pick, uniforms

MANY = [kind for kind in KINDS if kind != "aspen-8"]


def durations(trace: Trace) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([job.duration_s for job in trace], dtype=np.float64)


def submissions(trace: Trace) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([job.submit_s for job in trace])


def cv2(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(values.var() / values.mean() ** 2)


def test_uniform_streams_are_pinned() -> None:
    """The bits are part of the contract: a change of them changes every generated trace."""
    assert uniforms(0, "gap", 2).tolist() == [0.41575433806062045, 0.7427483097092732]
    assert uniforms(3, "size", 50).tolist() == uniforms(3, "size", 500)[:50].tolist()
    assert uniforms(3, "size", 5).tolist() != uniforms(4, "size", 5).tolist() != uniforms(4, "gap", 5).tolist()
    many = uniforms(1, "x", 100_000)
    assert 0 < many.min() < 1e-4
    assert 1 - 1e-4 < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_same_arguments_same_trace(kind: str) -> None:
    jobs = None if kind == "aspen-8" else 60
    assert generate(kind, jobs=jobs, seed=5) == generate(kind, jobs=jobs, seed=5)
    assert generate(kind, jobs=jobs, seed=5).sha256 != generate(kind, jobs=jobs, seed=6).sha256


@pytest.mark.parametrize("kind", MANY)
def test_a_job_does_not_depend_on_how_many_follow(kind: str) -> None:
    short, long = generate(kind, jobs=48, seed=9), generate(kind, jobs=480, seed=9)
    by_id = {job.job_id: job for job in long}
    assert all(by_id[job.job_id] == job for job in short)


@pytest.mark.parametrize("kind", KINDS)
def test_provenance_is_the_command_that_makes_it_again(kind: str) -> None:
    trace = generate(kind, seed=3, **({"jobs": 20} if kind != "aspen-8" else {}))
    assert trace.provenance.startswith("MODELLED, not measured:")
    words = trace.provenance.split("Made by: ")[1].split()
    assert words[:4] == ["loramux", "trace", "generate", "--kind"]
    assert words[4:9] == [kind, "--jobs", str(len(trace)), "--seed", "3"]


@pytest.mark.parametrize(
    ("law", "scv", "expected"),
    [
        ("exp", None, 1.0),
        ("deterministic", None, 0.0),
        ("uniform", None, 1 / 3),
        ("hyperexp", None, 5.5),
        ("hyperexp", 10.0, 10.0),
        ("lognormal", None, math.e - 1),
        ("lognormal", 0.5, 0.5),
        ("pareto", 0.1, 0.1),
    ],
)
def test_sizes_have_their_moments(law: str, scv: float | None, expected: float) -> None:
    n, mean = 40_000, 3.0
    trace = generate("poisson", jobs=n, seed=11, sizes=law, mean_s=mean, scv=scv, rho=0.7, servers=4)
    size = durations(trace)
    # Five standard errors: the law is right, the draw may be a little off.
    assert abs(size.mean() / mean - 1) <= 5 * math.sqrt(expected / n) + 1e-12
    assert cv2(size) == pytest.approx(expected, rel=0.25, abs=1e-9)
    gaps = np.diff(submissions(trace))
    assert gaps.mean() * 0.7 * 4 / mean == pytest.approx(1, abs=5 / math.sqrt(n))
    assert cv2(gaps) == pytest.approx(1, rel=0.05)
    assert all(job.num_gpus == 1 and job.base_model == "llama-7b" for job in trace)


def test_default_hyperexp_is_the_one_of_the_oracles() -> None:
    """Phases .9/.1 of means .5/5.5: P(X > 3) = .9 exp(-6) + .1 exp(-3/5.5)."""
    size = durations(generate("poisson", jobs=50_000, sizes="hyperexp", seed=2))
    expected = 0.9 * math.exp(-6) + 0.1 * math.exp(-3 / 5.5)
    assert (size > 3).mean() == pytest.approx(expected, abs=4 * math.sqrt(expected / 50_000))


def test_float_precision_survives_the_file(tmp_path: Path) -> None:
    trace = generate("poisson", jobs=2000, seed=1)
    write_trace(trace, tmp_path / "t.csv")
    again = read_trace(tmp_path / "t.csv")
    assert [(j.submit_s, j.duration_s) for j in again] == [(j.submit_s, j.duration_s) for j in trace]


def test_memory_classes() -> None:
    trace = generate("poisson", jobs=20_000, rho=6, mem_bytes="6GiB:3,10GiB:2,24GiB:1")
    sizes = np.array([job.mem_bytes for job in trace])
    for gib, share in ((6, 1 / 2), (10, 1 / 3), (24, 1 / 6)):
        assert (sizes == gib * 2**30).mean() == pytest.approx(share, abs=0.015)
    assert (parse_bytes("1024"), parse_bytes("1.5 GB"), parse_bytes("2kib")) == (1024, 1_500_000_000, 2048)


def test_gavel() -> None:
    trace = generate("gavel", jobs=30_000, seed=4, rho=0.5, servers=64)
    size = durations(trace)
    assert size.mean() == pytest.approx(MEAN_S, rel=0.05)
    assert size.min() >= 60 * 10**1.5
    assert size.max() <= 60 * 10**4
    assert (size > 60_000).mean() == pytest.approx(0.2, abs=0.01)
    gpus = np.array([job.num_gpus for job in trace])
    for count, share in ((1, 0.70), (2, 0.10), (4, 0.15), (8, 0.05)):
        assert (gpus == count).mean() == pytest.approx(share, abs=0.01)
    assert float((size * gpus).sum()) / (64 * submissions(trace)[-1]) == pytest.approx(0.5, rel=0.05)
    assert max(job.num_gpus for job in generate("gavel", jobs=200, max_gpus=2)) == 2


def test_bursty_is_bursty_at_the_same_rate() -> None:
    trace = generate("bursty", jobs=30_000, seed=4, sizes="exp", rho=0.6)
    gaps = np.diff(submissions(trace))
    assert cv2(gaps) > 2.5
    assert gaps.mean() == pytest.approx(1800 / (4 * 0.6), rel=0.08)
    calm = np.diff(submissions(generate("bursty", jobs=10_000, seed=4, burst_ratio=1)))
    assert cv2(calm) == pytest.approx(1, rel=0.08)


def test_hparam_search() -> None:
    trace = generate("hparam-search", jobs=320, seed=1, trials=16, stop_share=0.5)
    groups = {name: list(jobs) for name, jobs in itertools.groupby(trace, key=lambda job: job.group)}
    assert len(groups) == 20
    for jobs in groups.values():
        assert len(jobs) == 16
        for column in ("submit_s", "base_model", "method", "batch_size", "seq_len", "total_steps"):
            assert len({getattr(job, column) for job in jobs}) == 1
        assert len({job.lr for job in jobs}) == 16
    stopping = [job for job in trace if job.stop_step is not None]
    assert 0.4 < len(stopping) / 320 < 0.6
    assert all(1 <= (job.stop_step or 0) <= (job.total_steps or 0) for job in stopping)


def test_aspen_8() -> None:
    trace = generate("aspen-8")
    assert sorted(job.num_samples or 0 for job in trace) == sorted([34_000, 17_000, 5_556, 2_700] * 2)
    assert {job.submit_s for job in trace} == {0.0}
    assert {job.base_model for job in trace} == {"llama-7b"}
    assert {(job.dataset, job.length_dist) for job in trace} == {("alpaca", "alpaca"), ("spider", "sql")}
    assert len({job.lr for job in trace}) == 2
    # One epoch holds the non-pad tokens that the published hours and effective rates agree on.
    published = 27.73 * 3600 * 282
    assert sum((job.num_samples or 0) * job.seq_len for job in trace) == pytest.approx(published, rel=0.01)
    with pytest.raises(UsageError, match="8 jobs"):
        generate("aspen-8", jobs=9)


def test_philly_like_follows_the_statistics() -> None:
    trace = generate("philly-like", jobs=30_000, seed=1)
    size, gaps = durations(trace), np.diff(submissions(trace))
    assert np.percentile(size, 50) == pytest.approx(1144, rel=0.06)
    assert np.percentile(size, 90) == pytest.approx(11_264, rel=0.15)
    assert np.mean([job.num_gpus == 1 for job in trace]) == pytest.approx(0.93167, abs=0.01)
    assert (gaps < 10).mean() == pytest.approx(0.53, abs=0.05)
    assert cv2(gaps) > 8
    assert submissions(trace)[-1] / 30_000 == pytest.approx(108.9 * 86400 / 82_247, rel=0.1)
    logs = np.log(size)
    assert np.corrcoef(logs[1:], logs[:-1])[0, 1] == pytest.approx(0.4749, abs=0.08)
    # Weekday hours see more arrivals than weekend ones, as in Philly.
    day = (submissions(trace) // 86400 % 7).astype(int)
    assert (day < 5).mean() / 5 > 1.5 * (day >= 5).mean() / 2
    top = max({job.base_model for job in trace}, key=lambda name: sum(job.base_model == name for job in trace))
    assert np.mean([job.base_model == top for job in trace]) == pytest.approx(0.31, abs=0.02)


@pytest.mark.parametrize("rho", [0.3, 1.5])
def test_philly_like_hits_a_load(rho: float) -> None:
    trace = generate("philly-like", jobs=500, seed=3, load=rho, servers=8, max_gpus=4, max_duration_s=7200)
    work = float((durations(trace) * np.array([job.num_gpus for job in trace])).sum())
    times = submissions(trace)
    assert work / (8 * (times[-1] - times[0])) == pytest.approx(rho, rel=1e-4)
    assert durations(trace).max() <= 7200
    assert max(job.num_gpus for job in trace) <= 4


def test_the_sample_is_valid_and_made_again(tmp_path: Path) -> None:
    trace = read_trace(sample_path())
    assert trace == make_sample()
    write_trace(make_sample(), tmp_path / "sample.csv")
    assert (tmp_path / "sample.csv").read_bytes() == sample_path().read_bytes()
    assert len(trace) == JOBS == 1000
    assert trace.provenance.startswith("MODELLED")
    assert "CC-BY-4.0" in trace.provenance
    assert "loramux trace generate --kind philly-like" in trace.provenance
    assert {job.num_gpus for job in trace} == {1, 2, 4}
    assert {job.priority for job in trace} == {0, 1, 2}
    assert {job.method for job in trace} == {"lora", "mixlora", "dynmole", "mola"}
    assert len({job.base_model for job in trace}) == 3


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("philly", {}, "did you mean philly-like"),
        ("poisson", {"rhoo": 1}, "did you mean rho"),
        ("poisson", {"rho": "x"}, "poisson rho: 'x'; must be a number"),
        ("poisson", {"rho": 0}, "poisson rho: '0'; must be above 0"),
        ("poisson", {"rho": 1, "load": 2}, "given twice"),
        ("poisson", {"sizes": "normal"}, "must be one of exp, deterministic"),
        ("poisson", {"sizes": "exp", "scv": 2}, "exp have scv 1"),
        ("poisson", {"sizes": "hyperexp", "scv": 1}, "above 1"),
        ("poisson", {"mem_bytes": "6XB:1"}, "6XB"),
        ("poisson", {"mem_bytes": "6:x"}, "6:x"),
        ("poisson", {"base_model": "a b"}, "base_model: 'a b'; must be a name or path"),
        ("poisson", {"jobs": 0}, "jobs must be"),
        ("poisson", {"seed": -1}, "seed must be"),
        ("philly-like", {"jobs": 1, "rho": 1}, "at least 2 jobs"),
        ("gavel", {"bases": "a:0"}, "weight above 0"),
        ("gavel", {"methods": "qlora"}, "'qlora' is no method; did you mean lora"),
    ],
)
def test_wrong_arguments(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        generate(kind, **arguments)
    assert message in str(caught.value)


def test_every_parameter_is_documented() -> None:
    for kind in KINDS:
        generator = get_generator(kind)
        assert generator.summary
        for name, _, text in generator.help():
            assert text, f"{kind} {name}"


def test_shares_and_picks() -> None:
    assert parse_shares("a:2, b") == (("a", 2.0), ("b", 1.0))
    assert pick(np.array([0.0, 0.6, 0.7, 1.0]), [("a", 2.0), ("b", 1.0)]) == ["a", "a", "b", "b"]
    drawn = LoraMix().with_shares(methods="lora").draw(0, 50)
    assert {row["method"] for row in drawn} == {"lora"}
