"""Offered load: right on one type of device, on several, and where jobs fit only some."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loramux_profiles.devices import parse_devices
from loramux_simulator import SimOptions
from loramux_simulator.offered_load import at_load, load_or_none, offered_load
from loramux_traces.errors import UsageError
from loramux_traces.job import Trace

from .workloads import GIB, job, trace_of

A100, L4 = parse_devices("a100-80g")[0], parse_devices("l4")[0]
IDEAL = SimOptions(ideal=True)


def burst(*jobs: object, span_s: float = 100.0) -> Trace:
    """Jobs at the start, and one of no length at the end of the span."""
    last = job("last", span_s, duration_s=1e-6, mem_bytes=GIB)
    return trace_of(*jobs, last)  # type: ignore[arg-type]


def test_one_type_is_work_over_capacity() -> None:
    trace = burst(*(job(f"j{i}", 0.0, duration_s=40.0, mem_bytes=GIB) for i in range(6)))
    assert offered_load(trace, [A100]) == pytest.approx(2.4)
    assert offered_load(trace, [A100] * 4) == pytest.approx(0.6)
    assert load_or_none(trace_of(job("a", 0.0, duration_s=1.0)), [A100]) is None


def test_what_never_runs_brings_no_work() -> None:
    small = [job(f"j{i}", 0.0, duration_s=40.0, mem_bytes=GIB) for i in range(2)]
    huge = job("huge", 0.0, duration_s=1e5, mem_bytes=300 * GIB)
    gang = job("gang", 0.0, duration_s=40.0, mem_bytes=GIB, num_gpus=2)
    assert offered_load(burst(*small, huge), [A100]) == pytest.approx(0.8)
    assert offered_load(burst(*small, gang), [A100]) == pytest.approx(0.8)
    assert offered_load(burst(*small, gang), [A100] * 2) == pytest.approx(0.8)  # 80 + 80 of 200
    assert offered_load(burst(*small, gang), [A100] * 2, SimOptions(multi_gpu="drop")) == pytest.approx(0.4)
    with pytest.raises(UsageError, match="no job of the trace fits"):
        at_load(trace_of(huge, replace(huge, job_id="huge2", submit_s=9.0)), 0.5, [A100])


def test_mixed_devices_share_the_work_as_well_as_can_be() -> None:
    """By hand: times t on the A100 and r t on the L4, spread so that both end together."""
    heavy = {"base_model": "tinyllama-1.1b", "batch_size": 32, "seq_len": 1024.0}
    steps = [job(f"j{i}", 0.0, total_steps=100.0, mem_bytes=GIB, **heavy) for i in range(6)]
    trace = burst(*steps)
    alone = {device.name: offered_load(trace, [device]) for device in (A100, L4)}
    ratio = alone["l4"] / alone["a100-80g"]
    assert ratio > 1.2  # the L4 is slower
    both = offered_load(trace, [A100, L4])
    assert both == pytest.approx(alone["a100-80g"] * ratio / (1 + ratio), rel=2e-3)
    assert both == pytest.approx(offered_load(trace, [L4, A100]), rel=2e-3)  # the order of devices is nothing
    assert offered_load(trace, [A100, A100, L4]) < both < min(alone.values())


def test_what_fits_one_type_only_loads_that_one() -> None:
    large = [job(f"j{i}", 0.0, total_steps=100.0, mem_bytes=40 * GIB) for i in range(4)]
    only = offered_load(burst(*large), [A100])
    assert offered_load(burst(*large), [A100, L4]) == pytest.approx(only, rel=2e-3)


def test_a_trace_at_a_load_has_that_load() -> None:
    jobs = [job(f"j{i}", 3.0 * i, total_steps=50.0 + i, mem_bytes=GIB) for i in range(30)]
    for devices in ([A100], [A100, L4]):
        assert offered_load(at_load(trace_of(*jobs), 0.7, devices), devices) == pytest.approx(0.7, rel=1e-6)
