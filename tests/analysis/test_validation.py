"""Real runs and their simulations compared: errors, noise, intervals, ranking, verdicts, charts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from loramux_analysis.agreement import wasserstein
from loramux_analysis.charts.validation import draw
from loramux_analysis.intervals import of_mean
from loramux_analysis.style import save
from loramux_analysis.validation import Twin, Validation, validate
from loramux_analysis.validation_report import markdown, said
from loramux_traces.results import COMPLETED, FAILED_OOM
from loramux_traces.runfolder import Run

from .conftest import MakeRun


def run_of(
    turnarounds: list[float], *, kind: str = "real", states: dict[int, str] | None = None, **summary: Any
) -> Run:
    """A run of jobs a, b, ... that were all submitted at 0."""
    jobs = pd.DataFrame(
        {
            "job_id": [chr(97 + i) for i in range(len(turnarounds))],
            "turnaround_time": turnarounds,
            "final_state": [(states or {}).get(i, COMPLETED) for i in range(len(turnarounds))],
        }
    )
    return Run(Path(), {"kind": kind, "policy": "p"}, {"makespan_s": max(turnarounds), **summary}, jobs)


def policy(name: str, real: list[list[float]], simulated: list[list[float]]) -> list[Twin]:
    return [Twin(name, run_of(a), (run_of(b, kind="simulated"),)) for a, b in zip(real, simulated, strict=True)]


def compare(*twins: Twin) -> Validation:
    return validate(twins, speed_factor=None, applied_factor=1.0)


def test_the_figures_of_a_policy_by_hand() -> None:
    # means 10, 11, 12; simulated 11, 11, 11
    found = compare(*policy("fifo", [[5, 15], [6, 16], [7, 17]], [[5.5, 16.5], [6.6, 15.4], [7, 15]]))
    (row,) = found.policies
    assert (row.repeats, row.simulations, row.jobs, row.not_in_all) == (3, 3, 2, 0)
    assert (row.real_mean_s, row.simulated_mean_s) == (11.0, pytest.approx(11.0))
    assert row.mean_error == pytest.approx(0.0) and row.spread == pytest.approx(1 / 11)
    assert row.real_low_s == pytest.approx(11 - 4.302653 / 3**0.5) and row.interval == pytest.approx(
        2.48414 / 11, rel=1e-5
    )
    errors = [0.1, 0.1, 0.1, 0.6 / 16, 0.0, 2 / 17]
    assert row.job_error_p50 == pytest.approx(np.percentile(errors, 50))
    assert row.job_error_p90 == pytest.approx(np.percentile(errors, 90))
    noise = [abs(x - y) / y for a in (5, 15) for x in (a, a + 1, a + 2) for y in (a, a + 1, a + 2) if x != y]
    assert row.job_noise_p90 == pytest.approx(np.percentile(noise, 90))
    assert row.makespan_error == pytest.approx(np.mean([0.1, -0.6 / 16, -2 / 17]))
    assert row.ks == pytest.approx(1 / 6) and row.memory_error is None
    pooled = np.sort([5.5, 16.5, 6.6, 15.4, 7, 15]) - np.sort([5, 15, 6, 16, 7, 17])
    assert row.wasserstein_s == pytest.approx(np.abs(pooled).mean())
    assert found.missed() == []


def test_one_real_run_has_no_spread_and_five_percent_is_all_it_gets() -> None:
    (close,) = compare(*policy("fifo", [[10.0, 20.0]], [[10.4, 20.8]])).policies
    assert close.spread is close.interval is close.job_noise_p90 is close.real_low_s is None
    assert close.mean_ok and close.jobs_ok
    far = compare(*policy("fifo", [[10.0, 20.0]], [[11.6, 20.0]]))
    assert not far.policies[0].mean_ok and far.policies[0].jobs_ok
    assert "fifo: mean turnaround is off by +5.3%" in far.missed()
    skewed = compare(*policy("fifo", [[10.0, 20.0]], [[13.0, 17.2]]))
    assert skewed.policies[0].mean_ok and not skewed.policies[0].jobs_ok
    assert len(skewed.missed()) == 1 and "one job in ten" in skewed.missed()[0]


def test_the_noise_of_the_real_runs_excuses_as_much_error_and_no_more() -> None:
    noisy = [[8.0, 20.0], [12.0, 20.0]]  # means 14 and 16: half the range is 1/15
    (within,) = compare(*policy("fifo", noisy, [[9.0, 22.9], [9.0, 22.9]])).policies
    assert within.spread == pytest.approx(1 / 15) and within.mean_error == pytest.approx(0.95 / 15)
    assert within.mean_ok and within.job_noise_p90 is not None and within.job_noise_p90 > 0.4 and within.jobs_ok
    (beyond,) = compare(*policy("fifo", noisy, [[9.0, 23.2], [9.0, 23.2]])).policies
    assert not beyond.mean_ok


def ranked(simulated: dict[str, float]) -> Validation:
    """Three policies: a and b are told apart by the real runs, c overlaps with b."""
    real = {"a": [10.0, 10.1, 10.2], "b": [20.0, 20.1, 20.2], "c": [15.0, 21.0, 27.0]}
    return compare(
        *(
            twin
            for name, means in real.items()
            for twin in policy(name, [[m, m] for m in means], [[simulated[name]] * 2] * 3)
        )
    )


def test_only_pairs_that_the_real_runs_put_in_an_order_count() -> None:
    kept = ranked({"a": 10.0, "b": 20.0, "c": 19.0})
    assert [row.policy for row in kept.policies] == ["a", "b", "c"]
    assert kept.ranking.disjoint == (("a", "b"),) and kept.ranking.discordant == ()
    assert kept.ranking.tau == pytest.approx(1 / 3)
    turned = ranked({"a": 20.5, "b": 20.0, "c": 22.0})
    assert turned.ranking.discordant == (("a", "b"),)
    assert "b is simulated as faster than a" in turned.missed()


def test_jobs_that_did_not_complete_everywhere_are_counted_and_left_out() -> None:
    real = run_of([10.0, 20.0, 30.0], states={2: FAILED_OOM})
    found = compare(Twin("fifo", real, (run_of([10.0, 20.0, 99.0], kind="simulated"),)))
    (row,) = found.policies
    assert (row.jobs, row.not_in_all, row.mean_error) == (2, 1, 0.0)
    assert "1 jobs did not complete in every run" in found.missed()[0]


def test_nothing_in_common_is_said_not_crashed_on() -> None:
    real = run_of([10.0, 20.0], states={0: FAILED_OOM, 1: FAILED_OOM})
    found = compare(Twin("fifo", real, (run_of([10.0, 20.0], kind="simulated"),)))
    (row,) = found.policies
    assert row.jobs == 0 and row.not_in_all == 2 and found.missed()
    assert np.isnan(row.real_mean_s) and row.ks is None and row.job_error_p90 is None


def test_memory_counts_where_it_was_measured() -> None:
    real = run_of([10.0], memory_peak_bytes=100.0)
    simulated = run_of([10.0], kind="simulated", memory_peak_bytes=110.0)
    for manifest, summary, expected in (
        ({}, {}, None),
        ({"memory_measured": True}, {}, 0.1),
        ({}, {"prediction": {"memory_mape": 0.01}}, 0.1),
        ({"memory_measured": False}, {"prediction": {"memory_mape": 0.01}}, None),
    ):
        run = replace(real, manifest=real.manifest | manifest, summary=real.summary | summary)
        (row,) = compare(Twin("fifo", run, (simulated,))).policies
        assert row.memory_error == (None if expected is None else pytest.approx(expected))


def test_repeats_of_one_seed_share_their_simulation() -> None:
    shared = run_of([10.0, 20.0], kind="simulated")
    found = compare(*(Twin("fifo", run_of([m, 2 * m]), (shared,)) for m in (9.5, 10.0, 10.5)))
    (row,) = found.policies
    assert (row.repeats, row.simulations) == (3, 1) and row.mean_error == pytest.approx(0.0)


def test_intervals_and_distances_of_too_little() -> None:
    nothing, one, two = (of_mean(np.array(values)) for values in ([], [3.0], [3.0, 5.0]))
    assert np.isnan(nothing.mean) and not nothing.known
    assert one.mean == 3.0 and not one.known
    assert two.mean == 4.0 and two.high - 4.0 == pytest.approx(12.7062, rel=1e-4)
    assert wasserstein(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(1.0)
    assert wasserstein(np.array([]), np.array([1.0])) is None
    with pytest.raises(ValueError):
        compare()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Validation:
    """Two policies, two repeats, with timelines."""
    folder = tmp_path_factory.mktemp("twins")
    twins = []
    for name in ("fifo", "sjf"):
        for seed in (0, 1):
            real = make_run(folder / f"real-{name}-{seed}", name, seed, kind="real", jobs=40, slow=1.1)
            twin = make_run(folder / f"sim-{name}-{seed}", name, seed, jobs=40)
            twins.append(Twin(name, real, (twin,), 1.1))
    return validate(twins, speed_factor=1.1, applied_factor=1.0)


def test_every_chart_is_drawn_with_its_numbers(drawn: Validation, tmp_path: Path) -> None:
    drawings = {drawing.name: drawing for drawing in draw(drawn)}
    names = [f"gantt-{row.policy}-s0" for row in drawn.policies]
    assert list(drawings) == ["jobs", "turnaround_cdf", "means", *names]
    assert len(drawings["jobs"].data) == 4 * 40 and set(drawings["jobs"].data["repeat"]) == {0, 1}
    assert set(drawings["gantt-fifo-s0"].data["kind"]) == {"real", "simulated"}
    upper, lower = drawings["gantt-fifo-s0"].figure.axes
    assert upper.get_xlim() == lower.get_xlim()
    for drawing in drawings.values():
        for path in save(drawing, tmp_path):
            assert path.stat().st_size > 100
    text = markdown(drawn, list(drawings))
    assert "| fifo | 2 | 40 |" in text and "![jobs](plots/jobs.png)" in text


def test_the_words_say_what_was_done_to_the_times(drawn: Validation) -> None:
    plain = " ".join(said(drawn, 100))
    assert "took 1.100 times what the profile predicts over 100 steps (1.100 to 1.100 run by run)" in plain
    assert "those of the profile" in plain and "not measured" in plain
    corrected = " ".join(said(replace(drawn, applied_factor=1.1)))
    assert "multiplied by 1.100, one number for all runs" in corrected
    unknown = " ".join(said(replace(drawn, speed_factor=None)))
    assert "recorded no steps" in unknown


def test_nothing_completed_everywhere_is_said_and_never_nan(tmp_path: Path) -> None:
    """The charts raised a bare ValueError, and the verdict said nan%."""
    failed = {0: FAILED_OOM, 1: FAILED_OOM}
    bad = Twin("srtf", run_of([5.0, 6.0], states=failed), (run_of([5.0, 6.0], kind="simulated"),))
    nothing = compare(bad)
    assert nothing.missed() == ["srtf: no job completed in all of its runs, nothing can be compared"]
    assert draw(nothing) == []
    both = compare(bad, *policy("fifo", [[10.0, 20.0]], [[10.4, 20.8]]))
    drawings = draw(both)
    assert [drawing.name for drawing in drawings] == ["jobs", "turnaround_cdf", "means"]
    for drawing in drawings:
        save(drawing, tmp_path)
    for found in (nothing, both):
        for text in (*said(found), markdown(found, [])):
            assert "nan" not in text
    import json

    from loramux_traces.filesafe import json_text

    assert json.loads(json_text(nothing.to_dict()))["policies"][0]["mean_error"] is None
