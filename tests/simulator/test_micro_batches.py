"""The rows of a job as the step engine draws them: each once, over pauses too.

And what a raised bound is worth.
"""

from __future__ import annotations

from typing import Any

import pytest

from loramux_policies import Plan, Policy, start_in_order
from loramux_policies.views import ClusterView
from loramux_simulator import run as run_module
from loramux_simulator import simulate
from loramux_simulator.micro_batches import ReadyRun

from ..policies.bench import bench_of
from .workloads import job, trace_of


def test_micro_batches_cover_every_row_once() -> None:
    bench = bench_of("packed", "shared")
    one = next(j for j in bench.fitting(1) if j.cost_on(1).rows == 8)
    whole = ReadyRun(one, one.cost_on(1), 3)
    batches = []
    for _ in range(600):
        batches.append(whole.lengths)
        whole.advance(8)
    parts = ReadyRun(one, one.cost_on(1), 3)
    for wanted in batches:
        seen: list[int] = []
        for rows in (5, 2, 1):
            assert parts.rows == 8 - len(seen)
            assert (parts.longest, parts.tokens) == (max(parts.lengths), sum(parts.lengths))
            seen += parts.lengths[:rows]
            parts.advance(rows)
        assert tuple(seen) == wanted
    assert parts.done_micro == pytest.approx(600.0)
    assert parts.tokens_done == whole.tokens_done


def test_a_pause_keeps_the_data_cursor() -> None:
    """A job that is resumed after any number of rows goes on with the next row.

    In the middle of a micro-batch, too.
    """
    bench = bench_of("packed", "shared")
    one = next(j for j in bench.fitting(1) if j.cost_on(1).rows == 8)
    cost = one.cost_on(1)
    whole = ReadyRun(one, cost, 3)
    rows: list[int] = []
    for _ in range(600):
        rows += whole.lengths
        whole.advance(8)
    try:
        for done in (0, 1, 7, 8, 84, 513 * 8, 4095, 4096, 4101):
            one.done_steps = done / 8 / cost.accumulation
            resumed = ReadyRun(one, cost, 3)
            left = 8 - done % 8
            assert resumed.lengths == tuple(rows[done : done + left])
            assert (resumed.rows, resumed.tokens) == (left, sum(resumed.lengths))
            assert resumed.longest == max(resumed.lengths)
            resumed.advance(left)
            assert resumed.lengths == tuple(rows[done + left : done + left + 8])
            assert resumed.done_micro == pytest.approx((done + left) / 8)
    finally:
        one.done_steps = 0.0


def test_the_bound_in_use_is_the_bound_that_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """After every event `used` is what the residents need by the device's present bound.

    Out-of-memory or not.
    """
    monkeypatch.setattr(run_module, "QUANTILE_99", 0.15)
    seen = {"oom": 0, "finish": 0}

    def look(view: Any, plan: Any) -> None:
        for ledger in view._cluster.fleet:
            fresh = ledger.copy()
            fresh._total()
            assert ledger.used == pytest.approx(fresh.used, rel=1e-12)
            seen["oom"] += ledger.raised > 0.0 and len(ledger.jobs) > 1

    class Patient(Policy):
        """Starts nobody at the event itself.

        So nothing but the event can have brought the totals up to date.
        """

        def place(self, view: ClusterView) -> Plan:
            plan = view.plan()
            ended = view.changes.paused + view.changes.finished
            seen["finish"] += len(view.changes.finished)
            if ended and view.n_waiting:
                plan.review_at(view.now_s + 1e-6)
            elif not ended:
                start_in_order(view, plan, window=9)
            return plan

    columns = {"base_model": "tinyllama-1.1b", "batch_size": 8, "micro_batch_size": 4, "rank": 8}
    jobs = [job(f"j{i:02}", 3.0 * i, seq_len=(150.0, 250.0)[i % 2], total_steps=10.0 + i, **columns) for i in range(40)]
    for seed in range(3):
        simulate(trace_of(*jobs), Patient, devices="1xl4", fusion="padded", seed=seed, on_plan=look)
    assert seen["oom"] > 10 and seen["finish"] > 10
