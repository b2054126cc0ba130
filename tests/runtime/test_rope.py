"""Rotary positions and windows: a row of a packed step is worked out as it would be alone.

"Alone" is what transformers gives for a batch of this one row in a model that has seen no other:
its own length decides, whatever stands beside it, before it, or in the same micro-batch.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loramux_runtime.fused.adapters.base import Adapter
from loramux_runtime.fused.base_config import FAMILIES
from loramux_runtime.fused.context import running_step
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part
from loramux_runtime.fused.rope import BY_LENGTH, BY_POSITION, SequenceRope, longest_position

from .matrix import batch, build, grads, shaken, worst, zero_grads
from .reference import plain_model
from .test_families import CHANGES

ORIGINAL = 12
"""Positions before anything is stretched: the rows below are shorter, as long, and longer."""
ROPE: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": ORIGINAL},
    "longrope": {
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [1.0, 2.0, 3.0],
        "original_max_position_embeddings": ORIGINAL,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL - 4,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
HERE = [kind for kind in ROPE if kind == "default" or kind in ROPE_INIT_FUNCTIONS]
LENGTHS = (5, 30, 12, 13, 31)


def _model(kind: str, family: str = "llama", dtype: Any = "fp32", **changes: Any) -> FusedModel:
    rope = {"rope_type": kind, "rope_theta": 100.0, **ROPE[kind]}
    most = 4 * ORIGINAL if kind == "longrope" else ORIGINAL
    changes = {"max_position_embeddings": most, "rope_parameters": rope, "head_dim": 6, **changes}
    return FusedModel(build(family, dtype, **changes))


def test_every_type_that_transformers_has_is_known() -> None:
    """A new type breaks this test, and until then a base that has it is refused."""
    assert ROPE_INIT_FUNCTIONS.keys() <= {*BY_POSITION, *BY_LENGTH} == ROPE.keys()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", HERE)
def test_each_row_has_the_angles_that_transformers_gives_it_alone(kind: str, dtype: str) -> None:
    model = _model(kind, dtype=dtype)
    fresh = plain_model(model.base).model.rotary_emb
    ours = model.base.hf.model.rotary_emb
    assert isinstance(ours, SequenceRope) == (kind in BY_LENGTH)
    adapter = model.new_adapter("a", "lora", shaken(model, "lora").config)
    for lengths in (LENGTHS, LENGTHS[::-1], (5, 12), (40,), (5,), (30, 31)):
        layout = model.layout([Part(adapter=adapter, batch=batch(lengths))])
        like = torch.zeros(1, layout.width, 1, dtype=model.base.dtype)
        with running_step(layout):
            found = ours(like, layout.positions)
        for start, end in layout.sequences:
            alone = copy.deepcopy(fresh)(like[:, start:end], torch.arange(end - start)[None])
            for mine, theirs in zip(found, alone, strict=True):
                assert torch.equal(mine[:, start:end], theirs), (lengths, end - start)


def _steps(model: FusedModel, adapter: Adapter, lengths: tuple[int, ...], split: bool, peer: Part | None) -> Any:
    """Gradients and losses of a window in one micro-batch or in one for each row."""
    whole = batch(lengths, 1)
    batches = [whole]
    if split:
        batches = [
            MicroBatch(tokens=(tokens,), labels=(labels,), samples=(i,), window_labels=whole.n_labels)
            for i, (tokens, labels) in enumerate(zip(whole.tokens, whole.labels, strict=True))
        ]
    own = [Part(adapter=adapter, batch=one) for one in batches]
    zero_grads(own)
    losses = [model.step([part] if peer is None else [peer, part])[-1].loss for part in own]
    return grads(adapter), losses


def _hold_alone_and_with_a_peer(model: FusedModel, lengths: tuple[int, ...]) -> None:
    """The peer's row is 50 times as long as the job's longest."""
    adapter = shaken(model, "lora", dropout=0.1)
    peer = Part(adapter=shaken(model, "lora", job="peer", seed=3), batch=batch((50 * max(lengths),), 7))
    sums = []
    for split in (False, True):
        alone, losses = _steps(model, adapter, lengths, split, None)
        beside, others = _steps(model, adapter, lengths, split, peer)
        again, afterwards = _steps(model, adapter, lengths, split, None)
        assert losses == others == afterwards
        assert all(torch.equal(alone[name], beside[name]) for name in alone)
        assert all(torch.equal(alone[name], again[name]) for name in alone), "something was kept from the peer"
        sums.append(alone)
    assert worst(*sums) < 1e-5  # the same sums, added up in another order


@pytest.mark.parametrize("kind", HERE)
def test_a_job_has_its_bits_beside_a_peer_fifty_times_longer(kind: str) -> None:
    _hold_alone_and_with_a_peer(_model(kind), (4, 20, 13))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_its_windows_beside_a_peer_fifty_times_longer(family: str) -> None:
    """Rows are longer than the windows."""
    changes = {"head_dim": 6, "max_position_embeddings": 64, **CHANGES.get(family, {})}
    _hold_alone_and_with_a_peer(FusedModel(build(family, **changes)), (4, 19))


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "dynamic"), ("qwen3", "dynamic"), ("glm", "dynamic"), ("phi3", "longrope")]
)
def test_logits_are_those_of_transformers_for_each_row_alone(family: str, kind: str) -> None:
    changes = {"original_max_position_embeddings": ORIGINAL} if family == "phi3" else {}
    model = _model(kind, family, **changes)
    part = Part(adapter=model.new_adapter("a", "lora", shaken(model, "lora").config), batch=batch(LENGTHS))
    for row, mine in zip(part.batch.tokens, model.logits([part])[0], strict=True):
        with torch.no_grad():
            expected = plain_model(model.base)(torch.from_numpy(row)[None], use_cache=False).logits[0]
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        (None, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}, 256),
    ],
)
def test_how_many_positions_a_base_was_made_for(rope: dict[str, Any] | None, longest: int) -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=64, rope_parameters=rope)
    assert longest_position(config) == longest
    assert longest_position(object()) is None


def test_a_base_knows_it_from_its_outline() -> None:
    assert build("llama", max_position_embeddings=99).longest_position == 99
