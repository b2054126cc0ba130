"""Estimates without the device.

Equal to the tracked peak of the real step, kept on disk, by either reader of jobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from loramux_profiles.devices import load_device
from loramux_profiles.planned import PlannedMemory
from loramux_profiles.shapes import ModelShape
from loramux_profiles.step_point import AdapterPoint, JobPoint, StepPoint
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.kernels import dropout
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.jobs.bases import open_base
from loramux_runtime.jobs.jobs_file import BaseConfig, read_jobs_file
from loramux_runtime.profiler import fake as fake_module
from loramux_runtime.profiler import peaks as peaks_module
from loramux_runtime.profiler.estimate import estimate, fake_peaks
from loramux_runtime.profiler.peaks import FakePeaks, cache_folder
from loramux_runtime.profiler.step import Peak, measure_peak
from loramux_runtime.profiler.subjects import RUNTIME_DEFAULTS, Base, read_subjects
from loramux_traces.errors import InvalidInputError, UsageError

from ..tiny_model import config

CONFIG = config(head_dim=16, vocab_size=300)
SHAPE = ModelShape(name="tiny", hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, vocab=300)
BASE = Base(label="tiny", shape=SHAPE, config=CONFIG)
POINT = StepPoint(jobs=(JobPoint(adapter=AdapterPoint(method="lora", rank=8), lengths=(30, 20), labels=40),))
JOBS = """\
base: {config: CONFIG, dtype: fp32}
defaults: {data: {path: rows.jsonl, template: "{instruction}{output}"}, batch_size: 4, steps: 3}
jobs:
  - {id: a, method: lora, adapter: {rank: 4}}
  - {id: b, method: mixlora, adapter: {rank: 4, num_experts: 4, attention: null}, batch_size: 2}
  - {id: c, method: mola, adapter: {rank: 4, num_experts: [2, 4]}, micro_batch_size: 2}
  - {id: d, method: dynmole, adapter: {num_experts: 4, keep_top_k: 0}}
  - {id: e, method: loramoe}
  - {id: f, method: lora, adapter: {use_dora: true, target_modules: qv}}
""".replace("CONFIG", json.dumps(CONFIG))


@pytest.fixture
def jobs(tmp_path: Path) -> str:
    rows = [{"instruction": "say " + "ab" * (i % 9), "output": "yes" * (1 + i % 3)} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "jobs.yaml"
    path.write_text(JOBS)
    return str(path)


def never() -> Any:
    raise AssertionError("a step was run")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., FakePeaks]:
    def peaks(**changes: Any) -> FakePeaks:
        return fake_peaks(**{"base": BASE, "dtype": "bf16", "exact": False, "folder": tmp_path / "cache", **changes})

    return peaks


def test_what_was_run_once_is_read_from_the_disk(make: Callable[..., FakePeaks], tmp_path: Path) -> None:
    first = make()
    found = first.peak(POINT)
    assert (first.runs, found.cached) == (1, False)
    second = FakePeaks({"config": CONFIG}, never, dtype="bf16", folder=tmp_path / "cache")
    assert replace(second.peak(POINT), cached=False) == found
    assert second.runs == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure in the place of a step: here what counts is whether one was asked for."""

    class Instead:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def peak(self, _: StepPoint) -> Peak:
            return Peak(weights=70_144, state=18_432, dynamic=262_656)

    monkeypatch.setattr(fake_module, "FakeStep", Instead)


@pytest.mark.usefixtures("instead")
def test_bad_entries_are_ignored_and_written_anew(make: Callable[..., FakePeaks], tmp_path: Path) -> None:
    found = make().peak(POINT)
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    peaks = make()
    changed = good.replace(str(found.dynamic).encode(), str(found.dynamic - 512).encode())
    assert changed != good
    for n, bad in enumerate((b"", good[:-9], changed, b"[]", b'{"check": 1}', b"\xff\x00", b"[" * 100_000), 1):
        file.write_bytes(bad)
        assert peaks.peak(POINT) == found
        assert peaks.runs == n
        assert file.read_bytes() == good


@pytest.mark.usefixtures("instead")
def test_everything_the_peak_depends_on_is_in_the_key(
    make: Callable[..., FakePeaks], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    first.peak(POINT)
    assert first.runs == 1
    deeper = replace(BASE, config={**CONFIG, "num_hidden_layers": 3})
    for peaks, point in (
        (make(base=deeper), POINT),
        (make(dtype="fp32"), POINT),
        (make(exact=True), POINT),
        (make(), replace(POINT, recompute=True)),
    ):
        assert not peaks.peak(point).cached
        assert peaks.peak(point).cached
    monkeypatch.setattr(peaks_module, "code_digest", lambda: "another")
    assert not make().peak(POINT).cached
    monkeypatch.undo()
    monkeypatch.setattr(peaks_module, "version", lambda name: "0.0")
    assert not make().peak(POINT).cached


def test_a_folder_that_cannot_be_written_costs_the_entry_only(tmp_path: Path, make: Callable[..., FakePeaks]) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert make(folder=tmp_path / "file", tell=said.append).peak(POINT).dynamic > 0
    assert "not kept" in said[-2] + said[-1]


def test_the_cache_is_where_the_standard_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "loramux" / "estimates"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "loramux" / "estimates"


def test_the_estimate_is_the_tracked_peak_of_the_real_step(jobs: str, tmp_path: Path) -> None:
    subjects = read_subjects(jobs)
    found = estimate(load_device("cpu"), subjects, cache=tmp_path / "cache")
    quick = estimate(load_device("cpu"), subjects, quick=True)
    model = FusedModel(open_base(read_jobs_file(jobs).base))
    planned = PlannedMemory(subjects.base.shape, dtype="fp32", exact=True)  # type: ignore[union-attr]
    for figure, by_plan in ((found.admitted, quick.admitted), (found.mean, quick.mean)):
        assert figure.cached is False and by_plan.cached is None
        assert figure.plan_dynamic_bytes == by_plan.dynamic_bytes
        assert figure.plan_difference == pytest.approx(by_plan.dynamic_bytes / figure.dynamic_bytes - 1, abs=1e-6)
        assert abs(figure.plan_difference) < 0.03
    mean = StepPoint(
        jobs=tuple(
            JobPoint(
                adapter=subjects.adapter(spec),
                lengths=(line.mean_tokens // line.micro_batch,) * line.micro_batch,
                labels=line.mean_tokens - line.micro_batch,
            )
            for spec, line in zip(subjects.specs, found.jobs, strict=True)
        )
    )
    peak = measure_peak(model, mean)
    assert found.mean.state_bytes == peak.state
    assert found.mean.weight_bytes == peak.weights
    assert found.mean.dynamic_bytes == pytest.approx(peak.dynamic, rel=1e-3)
    assert planned.point_bytes(mean) == pytest.approx(quick.mean.dynamic_bytes, abs=1)
    whole = found.admitted
    assert whole.expected_bytes == whole.weight_bytes + whole.context_bytes + whole.state_bytes + whole.dynamic_bytes
    assert whole.upper_bytes == pytest.approx(whole.expected_bytes + found.margin * whole.dynamic_bytes, abs=2)
    assert (found.missing_bytes, found.never) == (0, ())
    assert found.separate_bytes == sum(job.alone_expected_bytes for job in found.jobs)
    assert [job.micro_batch for job in found.jobs] == [4, 2, 2, 4, 4, 4]


def test_the_outline_says_what_the_reader_of_jobs_files_says(jobs: str) -> None:
    strict = read_subjects(jobs)
    outline = read_subjects(jobs, seq_len=20.0, seq_len_p95=30.0)
    assert outline.adapters == strict.adapters
    assert outline.base == strict.base
    assert outline.notes == strict.notes
    for a, b in zip(outline.specs, strict.specs, strict=True):
        assert a == replace(b, seq_len=20.0, seq_len_p95=30.0, total_steps=1.0, alpha=None)
    for method, values in RUNTIME_DEFAULTS.items():
        fields = METHODS[method].config_type.__dataclass_fields__
        for name, value in values.items():
            assert fields[name].default == value
        for name in ("rank", "target_modules", "num_experts", "top_k", "keep_top_k"):
            assert (name in fields) == (name in values)
        assert fields["dropout"].default == 0.05


def test_overrides(jobs: str) -> None:
    other = read_subjects(jobs, model="llama-tiny", dtype="bf16", recompute=True)
    assert other.base is not None and other.base.config is None
    assert {(s.base_model, s.dtype, s.recompute) for s in other.specs} == {("llama-tiny", "bf16", True)}
    found = estimate(load_device("l4"), other, quick=True)
    assert (found.model, found.recompute, found.dtype) == ("llama-tiny", True, "bf16")
    assert found.jobs[0].tokens > found.jobs[0].mean_tokens


def test_what_cannot_be_estimated_is_said(jobs: str, tmp_path: Path) -> None:
    header = "job_id,submit_s,base_model,method,batch_size,seq_len,total_steps,dtype\n"
    trace = tmp_path / "jobs.csv"
    trace.write_text(header + "a,0,llama-7b,lora,4,100,5,bf16\nb,0,llama-tiny,lora,4,100,5,fp32\n")
    device = load_device("a100-80g")
    with pytest.raises(UsageError, match=r"several base models \(llama-7b, llama-tiny\)"):
        estimate(device, read_subjects(str(trace)), quick=True)
    with pytest.raises(UsageError, match="bf16 and fp32"):
        estimate(device, read_subjects(str(trace), model="llama-7b"), quick=True)
    assert estimate(device, read_subjects(str(trace), model="llama-7b", dtype="bf16"), quick=True).dtype == "bf16"
    text = Path(jobs).read_text()
    for bad, what in (
        (text.replace("[2, 4]", "[2, 4, 6]"), "3 groups of experts for 2 layers"),
        (text.replace("rank: 4", "rank: none", 1), "jobs.0.adapter.rank"),
        (text.replace("id: b", "id: a"), "used twice"),
        (text.replace("base: {config:", "base: {shape: x, config:"), "exactly one of"),
    ):
        Path(jobs).write_text(bad)
        with pytest.raises((UsageError, InvalidInputError), match=what):
            estimate(load_device("cpu"), read_subjects(jobs, seq_len=20.0), quick=True)


def test_a_job_that_can_never_run_is_named(jobs: str) -> None:
    found = estimate(load_device("rtx-3090"), read_subjects(jobs, model="llama-2-13b", dtype="bf16"), quick=True)
    assert found.never == tuple("abcdef")
    assert found.missing_bytes > 0
    long = read_subjects(jobs, model="llama-7b", dtype="bf16", seq_len=2048.0)
    found = estimate(load_device("rtx-4090"), long, quick=True)
    assert not found.jobs[0].alone_fits
    assert not found.jobs[0].never  # one row does with recompute


def test_a_real_step_after_a_fake_one_is_real(make: Callable[..., FakePeaks]) -> None:
    """No fake tensor stays in a cache of the process."""
    model = FusedModel(open_base(BaseConfig(config=CONFIG)))
    dropout._channel_keys.cache_clear()
    cold = measure_peak(model, POINT)
    dropout._channel_keys.cache_clear()
    make(dtype="fp32", exact=True).peak(POINT)
    assert dropout._channel_keys.cache_info().currsize == 0
    assert measure_peak(model, POINT) == cold
