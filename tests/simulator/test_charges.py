"""What loading, pausing and running out of memory cost, by hand and the same in both fidelities."""

from __future__ import annotations

import pytest

from loramux_policies.views import DeviceView, FusedStep
from loramux_simulator import run as run_module
from loramux_simulator import simulate

from .scripted import FIDELITIES, Restless, Windowed, costs_of, events, turnaround
from .workloads import GIB, job, sized, trace_of


def test_loading_by_hand() -> None:
    """The base once while it stays, each adapter when it first starts.

    Another base pushes out one that nobody uses.
    """
    bases = ("llama-7b", "llama-7b", "tinyllama-1.1b", "llama-7b")
    trace = trace_of(*(job(f"j{i}", 1000.0 * i, duration_s=50.0, base_model=b) for i, b in enumerate(bases)))
    costs = costs_of(trace)
    result = turnaround(simulate(trace, "fifo", devices="1xa100-80g"))
    wanted = [50.0 + cost.load_s + cost.base.load_s * loads for cost, loads in zip(costs, (1, 0, 1, 1), strict=True)]
    assert list(result.values()) == pytest.approx(wanted)
    alone = turnaround(simulate(trace, "exclusive", devices="1xa100-80g"))
    assert list(alone.values()) == pytest.approx([50.0 + cost.load_s + cost.base.load_s for cost in costs])


def test_both_fidelities_charge_pauses_the_same() -> None:
    """Copies of a state are shorter than a step here.

    Made while a step was under way they cost nothing in steps.
    """

    trace = sized([60.0], base_model="llama-7b", rank=64, batch_size=8, seq_len=512.0)
    cost = costs_of(trace)[0]
    assert 0.0 < cost.pause_s < cost.solo_step_s
    ran = {f: simulate(trace, Restless(0.5, 80.0), devices="1xa100-80g", fidelity=f) for f in ("rate", "step")}
    for result in ran.values():
        charged = 2.0 * cost.pause_s * result.summary["preemptions"] + cost.load_s - cost.pause_s + cost.base.load_s
        assert charged > 10.0
        assert turnaround(result)["j0"] == pytest.approx(60.0 + charged, rel=0.03)


def test_mem_bytes_charges_no_base() -> None:
    trace = trace_of(job("a", 0.0, duration_s=50.0, base_model="llama-7b", mem_bytes=GIB))
    assert turnaround(simulate(trace, "fifo", devices="1xl4"))["a"] == pytest.approx(
        50.0 + costs_of(trace, "l4")[0].load_s
    )


def test_pausing_by_hand() -> None:
    """srtf on one seat: the long job is copied out and back in, the short one loaded."""
    trace = sized([1000.0, 10.0], [0.0, 100.0], base_model="llama-7b", rank=64)
    long, short = costs_of(trace)
    result = turnaround(simulate(trace, "srtf", devices="1xa100-80g", max_resident=1))
    first = 10.0 + long.pause_s + short.load_s
    assert result["j1"] == pytest.approx(first)
    assert result["j0"] == pytest.approx(1000.0 + long.load_s + long.base.load_s + first + long.pause_s)


def test_both_fidelities_charge_separate_processes_the_same() -> None:
    trace = sized([300.0] * 3, [0.0, 500.0, 1000.0], base_model="llama-7b")
    rate, step = (turnaround(simulate(trace, "exclusive", devices="1xa100-80g", fidelity=f)) for f in ("rate", "step"))
    assert list(step.values()) == pytest.approx(list(rate.values()), rel=0.02)


def test_tokens_are_not_counted_while_a_process_loads() -> None:
    trace = sized([40.0] * 4, [0.0, 3.0, 6.0, 9.0], base_model="llama-7b")
    for policy in ("exclusive", "separate"):
        result = simulate(trace, policy, devices="1xa100-80g")
        tokens = result.summary["effective_tokens_per_s"] * result.summary["makespan_s"]
        assert tokens == pytest.approx(result.jobs["tokens_done"].sum())


# --- out of memory ---


@FIDELITIES
def test_each_stay_runs_out_once_at_most(fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several checks of one stay may be under way when it ends.

    Those that come late must not evict the next stay.
    """
    monkeypatch.setattr(run_module, "QUANTILE_99", 0.2)
    jobs = [
        job(
            f"j{i:02}",
            0.05 * i,
            base_model="tinyllama-1.1b",
            batch_size=8,
            micro_batch_size=4,
            seq_len=400.0,
            total_steps=30.0,
        )
        for i in range(16)
    ]
    total = 0
    for seed in range(8):
        result = simulate(trace_of(*jobs), "ps", devices="1xl4", fidelity=fidelity, seed=seed, events=True)
        stays: dict[str, float] = {}
        for t_s, event, job_id in events(result):
            if event in ("start", "resume"):
                stays[job_id] = t_s
            elif event == "oom":
                total += 1
                assert t_s > stays.pop(job_id)  # after at least part of a step of this very stay
    assert total > 2


def test_the_newest_of_the_step_is_evicted_not_a_bystander(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a real device: who was not in the step that ran out has not taken the memory."""
    monkeypatch.setattr(run_module, "QUANTILE_99", 0.02)
    steps: list[tuple[float, set[str]]] = []

    class Pairs(Windowed):
        def fuse(self, device: DeviceView) -> FusedStep:
            step = device.step(sorted(device.ready, key=lambda run: -run.waited)[:2])
            steps.append((device.now_s, {entry.job_id for entry in step.entries}))
            return step

    fields = {"base_model": "tinyllama-1.1b", "batch_size": 8, "micro_batch_size": 4, "seq_len": 100.0}
    trace = trace_of(*(job(f"j{i}", total_steps=20.0, **fields) for i in range(6)))
    result = simulate(trace, Pairs(), devices="1xl4", fidelity="step", events=True)
    evicted = events(result, "oom")
    assert evicted
    for t_s, _, job_id in evicted:
        assert job_id in [names for began_s, names in steps if began_s < t_s][-1]


# --- jobs with and without mem_bytes ---


@pytest.mark.parametrize("policy", ["aspen:k=3", "aspen-minpad:k=2,residents=8", "fifo", "lorafusion:k=2"])
@pytest.mark.parametrize("fusion", ["padded", "packed"])
def test_mem_bytes_beside_modelled_jobs(policy: str, fusion: str) -> None:
    """Rows of a job with mem_bytes pad the others as well.

    What `fits` promises, the check of the step must keep.
    """
    jobs = [
        job(f"m{i}", 0.0, base_model="tinyllama-1.1b", seq_len=300.0, batch_size=4, total_steps=60.0) for i in range(5)
    ]
    jobs += [
        job(
            f"o{i}", 0.0, base_model="tinyllama-1.1b", seq_len=2500.0, batch_size=2, total_steps=40.0, mem_bytes=2 * GIB
        )
        for i in range(3)
    ]
    result = simulate(trace_of(*jobs), policy, devices="1xl4", fusion=fusion, fidelity="step")
    assert result.summary["completed"] + result.summary["failed"] == 8
