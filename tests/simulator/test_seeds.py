"""What a seed redraws: what is said, and whether it is so."""

from __future__ import annotations

from typing import Any

import pytest

from loramux_simulator import simulate
from loramux_simulator.seeds import LENGTHS, MEMORY, PREDICTED, ROLLED_LENGTHS, STOPS, redraw_sentence

from .workloads import job, trace_of

PLAIN = trace_of(*(job(f"j{i}", 2.0 * i, total_steps=60.0 + i) for i in range(8)))
STOPPING = trace_of(*(job(f"j{i}", 2.0 * i, total_steps=60.0 + i, stop_step=40.0) for i in range(8)))

CASES: list[tuple[Any, str, dict[str, Any], set[str]]] = [
    (PLAIN, "fifo", {"ideal": True}, set()),
    (PLAIN, "fifo", {}, {MEMORY}),
    (PLAIN, "fifo", {"prediction_error": 0.5}, {MEMORY, PREDICTED}),
    (PLAIN, "srtf", {"prediction_error": 0.5, "ideal": True}, set()),
    (PLAIN, "fifo", {"fidelity": "step"}, {LENGTHS, MEMORY}),
    (PLAIN, "aspen:k=2", {"ideal": True}, {ROLLED_LENGTHS}),
    (STOPPING, "aspen:k=2", {"ideal": True}, {ROLLED_LENGTHS, STOPS}),
    (STOPPING, "fifo", {"ideal": True}, set()),
]


@pytest.mark.parametrize(("trace", "policy", "options", "expected"), CASES)
def test_what_a_seed_redraws(trace: Any, policy: str, options: dict[str, Any], expected: set[str]) -> None:
    runs = [simulate(trace, policy, devices="1xa100-80g", seed=seed, **options) for seed in range(3)]
    for run in runs:
        assert set(run.seed_redraws) == expected
        assert run.jobs["submission_time"].tolist() == runs[0].jobs["submission_time"].tolist()
    if not expected:  # nothing is redrawn: the same figures, to the last bit
        assert all(run.jobs.equals(runs[0].jobs) for run in runs)
    if LENGTHS in expected:
        assert not runs[1].jobs.equals(runs[0].jobs)


def test_sentences() -> None:
    assert "every seed gives the same figures" in redraw_sentence([])
    assert redraw_sentence([LENGTHS, MEMORY]).startswith(
        f"A seed redraws {LENGTHS} and {MEMORY}; the jobs, their arrivals"
    )
    assert "all jobs" in redraw_sentence([], generated=True)
