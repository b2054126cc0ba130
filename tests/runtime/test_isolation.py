"""A job gone wrong leaves the others' bits alone.

NaN or infinite weights, in whatever tensor, in every method.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import Part

from .matrix import NAMES, batch, fused, parts, shaken, zero_grads


def _everything(name: str) -> bool:
    return True


POISONS: dict[str, tuple[float, Callable[[str], bool]]] = {
    "nan": (float("nan"), _everything),
    "inf": (float("inf"), _everything),
    "nan-router": (float("nan"), lambda name: "moe_gate" in name),
    "nan-B": (float("nan"), lambda name: "lora_B" in name),
    "overflow": (1e25, _everything),
}


def _jobs(model: FusedModel, name: str) -> list[Part]:
    """Every method, and two more jobs of the one that fails: before and after it in its group."""
    jobs = parts(model, dropout=0.1)
    bad = shaken(model, name, dropout=0.1, seed=5, job="bad")
    last = shaken(model, name, dropout=0.1, seed=6, job="last")
    return [*jobs, Part(adapter=bad, batch=batch((6, 3), 5)), Part(adapter=last, batch=batch((4,), 6))]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "one-gemm"])
@pytest.mark.parametrize("name", NAMES)
def test_peers_of_a_broken_job_are_untouched(name: str, exact: bool) -> None:
    model = fused(exact=exact)
    jobs = _jobs(model, name)
    healthy = model.step(jobs)
    kept = [part.adapter.slab.grads.clone() for part in jobs]
    values = jobs[-2].adapter.slab.params.clone()
    tried = 0
    for value, chosen in POISONS.values():
        views = [view for key, view in jobs[-2].adapter.slab.named_parts().items() if chosen(key)]
        if not views:
            continue
        tried += 1
        jobs[-2].adapter.slab.params.copy_(values)
        for view in views:
            view.fill_(value)
        jobs[-2].adapter.slab.version += 1
        zero_grads(jobs)
        outcomes = model.step(jobs)
        assert not torch.isfinite(jobs[-2].adapter.slab.grads).all()
        for part, one, other, grad in zip(jobs, healthy, outcomes, kept, strict=True):
            if part.adapter.job_id != "bad":
                assert one == other, part.adapter.job_id
                assert torch.equal(part.adapter.slab.grads, grad), part.adapter.job_id
    assert tried >= 4


def test_without_the_broken_job_the_bits_are_the_same() -> None:
    model = fused()
    jobs = _jobs(model, "mixlora")
    jobs[-2].adapter.slab.params.fill_(float("nan"))
    with_it = model.step(jobs)
    kept = {part.adapter.job_id: part.adapter.slab.grads.clone() for part in jobs}
    rest = [part for part in jobs if part.adapter.job_id != "bad"]
    zero_grads(rest)
    without = model.step(rest)
    assert [outcome for outcome in with_it if outcome.job_id != "bad"] == without
    assert all(torch.equal(part.adapter.slab.grads, kept[part.adapter.job_id]) for part in rest)
    assert with_it[-2].loss != with_it[-2].loss  # NaN
