"""Every case of the oracle: the authors' losses, logits and gradients to 1e-4, alone and fused."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from loramux_runtime.fused.model import FusedModel

from .oracle_cases import OracleCase, check, oracle_base, oracle_cases

MODES = {
    "exact": {"exact": True, "recompute": False},
    "recompute": {"exact": True, "recompute": True},
    "one-gemm": {"exact": False, "recompute": False},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", oracle_cases(), ids=lambda case: case.name)
def test_alone(case: OracleCase, mode: str) -> None:
    model = FusedModel(oracle_base(case.base), **MODES[mode])
    tensors = case.tensors
    part = case.part(model, tensors)
    (outcome,) = model.step([part])
    check(case, part, tensors, outcome, model.logits([part])[0])


@pytest.mark.parametrize("mode", MODES)
def test_all_in_one_step(mode: str) -> None:
    by_base: dict[Path, list[OracleCase]] = defaultdict(list)
    for case in oracle_cases():
        by_base[case.base].append(case)
    for folder, cases in by_base.items():
        model = FusedModel(oracle_base(folder), **MODES[mode])
        tensors = [case.tensors for case in cases]
        jobs = [case.part(model, held) for case, held in zip(cases, tensors, strict=True)]
        outcomes, logits = model.step(jobs), model.logits(jobs)
        for case, part, held, outcome, mine in zip(cases, jobs, tensors, outcomes, logits, strict=True):
            check(case, part, held, outcome, mine)


def test_a_wrong_number_is_noticed() -> None:
    case = oracle_cases()[0]
    model = FusedModel(oracle_base(case.base))
    tensors = case.tensors
    part = case.part(model, tensors)
    (outcome,) = model.step([part])
    logits = model.logits([part])[0]
    largest = max(float(value.abs().max()) for key, value in tensors.items() if key.startswith("grad/"))
    next(iter(part.adapter.slab.named_grads().values())).view(-1)[0] += 2e-4 * largest
    with pytest.raises(AssertionError):
        check(case, part, tensors, outcome, logits)
