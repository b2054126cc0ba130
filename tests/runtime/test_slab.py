"""The flat buffer: views, alignment, initial values, strict loading."""

from __future__ import annotations

import math

import pytest
import torch

from loramux_profiles.widths import RANK_BUCKETS, multiple_of_8, rank_bucket
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.slab import ALIGN, SlabLayout

from .matrix import NAMES, case, fused, shaken


def test_rank_buckets() -> None:
    assert [rank_bucket(r) for r in (1, 8, 9, 16, 17, 64, 65, 128, 129, 192, 193)] == [
        8, 8, 16, 16, 32, 64, 128, 128, 192, 192, 256,
    ]  # fmt: skip
    assert all(rank_bucket(width) == width for width in RANK_BUCKETS)
    assert [multiple_of_8(n) for n in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_lie_apart_and_aligned(name: str) -> None:
    slab = fused().new_adapter("j", *case(name)).slab
    slab.params.zero_()
    for number, spec in enumerate(slab.layout.specs, 1):
        assert slab.layout.offsets[spec.key] % ALIGN == 0
        assert not slab.param(spec.key).any()  # nobody wrote here yet
        slab.param(spec.key).fill_(number)
    for number, spec in enumerate(slab.layout.specs, 1):
        assert (slab.param(spec.key) == number).all()
    names = [part.name for spec in slab.layout.specs for part in spec.parts]
    assert len(set(names)) == len(names) == len(slab.named_parts()) == len(slab.named_grads())


def test_two_tensors_of_one_key_are_refused() -> None:
    specs = fused().new_adapter("j", *case("lora")).slab.layout.specs
    with pytest.raises(ValueError, match="two tensors are called"):
        SlabLayout((specs[0], specs[0]))


def test_initial_values_are_the_papers() -> None:
    model = fused()
    adapter = model.new_adapter("j", "mixlora", MixLoraConfig(rank=16, attention=LoraConfig(rank=16)), seed=3)
    for name, value in adapter.slab.named_parts().items():
        if "lora_B" in name:
            assert not value.any()
        elif "lora_A" in name:  # kaiming_uniform(a = sqrt 5): uniform within 1 / sqrt(n_in)
            bound = 1 / math.sqrt(value.shape[1])
            assert 0.9 * bound < float(value.abs().max()) <= bound
        else:
            assert "moe_gate" in name and 0.012 < float(value.std()) < 0.03
    dynmole = model.new_adapter("d", *case("dynmole"))
    gates = [value for name, value in dynmole.slab.named_parts().items() if "moe_gate" in name]
    assert all(0.8 < float(g.abs().max()) * math.sqrt(g.shape[1]) <= 1 for g in gates)


def test_a_generator_may_be_given() -> None:
    """As for profiles on a GPU, where it is one of the device."""
    method, config = case(NAMES[0])
    given = torch.Generator().manual_seed(5)
    made = fused().new_adapter("j", method, config, seed=1, generator=given).slab.params
    assert torch.equal(made, fused().new_adapter("j", method, config, seed=5).slab.params)


def test_initial_values_depend_on_the_seed_alone() -> None:
    model = fused()
    one, same = (model.new_adapter(job, *case("mola"), seed=4).slab.params for job in ("a", "b"))
    assert torch.equal(one, same) and not torch.equal(one, model.new_adapter("a", *case("mola"), seed=5).slab.params)


def test_dora_starts_with_the_norms_of_the_frozen_rows() -> None:
    for dtype in ("fp32", "fp64"):
        model = fused(dtype)
        for name in ("dora", "mixlora-dora"):
            adapter = model.new_adapter("j", *case(name))
            found = {k: v for k, v in adapter.slab.named_parts().items() if "magnitude" in k}
            for key, value in found.items():
                path = key.split("layers.")[1].split(".")
                assert torch.equal(value, model.base.weight(int(path[0]), path[2]).norm(dim=1)), key
            assert found


def test_loading_is_strict() -> None:
    slab = shaken(fused(), "mixlora").slab
    good = {name: value.clone() for name, value in slab.named_parts().items()}
    first = next(iter(good))
    slab.params.zero_()
    for bad, words in (
        ({k: v for k, v in good.items() if k != first}, f"missing {first}"),
        (good | {"x": torch.ones(1)}, "surplus x"),
        (good | {first: torch.ones(2, 2)}, f"{first} has shape"),
    ):
        version = slab.version
        with pytest.raises(ValueError, match=words):
            slab.load(bad)
        assert not slab.params.any() and slab.version == version
    slab.load(good)
    assert all(torch.equal(value, good[name]) for name, value in slab.named_parts().items())
    assert slab.version > 0
