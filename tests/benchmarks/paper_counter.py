"""Runs the real fused step on tensors without data (device meta), and counts what is dispatched.

meta takes the branches of CUDA (one product for all jobs, masks in large blocks) but for
attention, which is told to take them. Each operation is counted under the class of work that it
is done for.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from loramux_profiles.step_point import StepPoint
from loramux_runtime.fused import attention, groups, routing
from loramux_runtime.fused.adapters import balance
from loramux_runtime.fused.base_model import build_base
from loramux_runtime.fused.kernels import dropout, expert_ffn, experts, gated, loss, lowrank, norm
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.slab import Slab
from loramux_runtime.profiler.step import PointStep
from paper_costs import Cost, cost_of, tensors_of

OTHER: Final = "other"
FROZEN: Final = "frozen GEMM"
HEAD: Final = "head and loss"


class Counter(TorchDispatchMode):
    """Adds up the costs of operations by class of work."""

    def __init__(self, attention_flops: float) -> None:
        super().__init__()
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self.aten_calls = self.host_copies = self.reads_back = 0
        self.classes: list[str] = [OTHER]
        self.backward = False
        self._attention_flops = attention_flops
        self._made_in: dict[int, str] = {}

    def restart(self) -> None:
        """Forget what was counted so far."""
        self.costs.clear()
        self.aten_calls = self.host_copies = self.reads_back = 0
        self.classes[:] = [OTHER]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it."""
        kwargs = kwargs or {}
        if not self.backward:  # the node of this operation, if it has one, is the latest
            self._made_in[torch._C._autograd._get_sequence_nr() - 1] = self.classes[-1]
        out = func(*args, **kwargs)
        name = func._schema.name
        if name.startswith("prim::"):  # fake tensors ask for devices: no call on a real one
            return out
        self.aten_calls += 1
        tensors = tensors_of((args, kwargs, out))
        on_device = any(t.device.type == "meta" for t in tensors)
        if name == "aten::_local_scalar_dense":
            self.reads_back += 1
        elif on_device and any(t.device.type != "meta" for t in tensors if t.dim()) and "copy" in name:
            self.host_copies += 1
        if on_device:
            self.costs[self._class()] += cost_of(func, args, kwargs, out, self._attention_flops)
        return out

    def _class(self) -> str:
        if self.classes[-1] != OTHER or not self.backward:
            return self.classes[-1]
        node = torch._C._current_autograd_node()
        return OTHER if node is None else self._made_in.get(node._sequence_nr(), OTHER)

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose operations are counted under this class."""

        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            self.classes.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.classes.pop()

        return inner


def _places() -> Iterator[tuple[str, Any, str]]:
    """Yield (class of work, owner, attribute) of what is counted by itself."""
    import transformers.models.llama.modeling_llama as llama

    key = dropout.DropKey
    yield from (("dropout", key, name) for name in ("apply", "apply_and_add", "mask"))
    yield from ((FROZEN, lowrank.Frozen, name) for name in ("forward", "backward"))
    products = ("grouped_rows", "grouped_narrow", "grouped_add_", "grouped_outer")
    for module in (lowrank, expert_ffn, experts, routing):
        yield from (("adapter GEMM", module, name) for name in products if hasattr(module, name))
    yield from (("adapter scale", lowrank.LowRank, name) for name in ("scaled", "weight_grad"))
    yield "adapter gradients", groups.JobGroup, "add_grad"
    for owner, name in (
        (norm._RmsNorm, "RMSNorm"), (gated._Gated, "SwiGLU"), (loss._ChunkedLoss, HEAD),
        (expert_ffn._ExpertFfn, "experts"), (routing._RouterLogits, "router"),
    ):  # fmt: skip
        yield from ((name, owner, part) for part in ("forward", "backward"))
    yield from (("router", balance, name) for name in ("top_k_weights", "balance_stats"))
    for method in ("dynmole", "mola", "mixlora"):
        layer = importlib.import_module(f"loramux_runtime.fused.adapters.{method}.layer")
        for name in ("top_k_weights", "balance_stats", "make_slots", "entropy", "mask"):
            if hasattr(layer, name):
                yield "router", layer, name
    yield "attention", attention, "_varlen"
    yield "rope", llama, "apply_rotary_pos_emb"
    yield "residual", llama.LlamaDecoderLayer, "forward"


@contextmanager
def _classes(counter: Counter) -> Iterator[None]:
    with ExitStack() as stack:
        for name, owner, attribute in _places():
            found = vars(owner)[attribute]
            function = found.__func__ if isinstance(found, staticmethod) else found
            wrapped: Any = counter.within(name, function)
            if isinstance(found, staticmethod):
                wrapped = staticmethod(wrapped)
            stack.enter_context(patch.object(owner, attribute, wrapped))
        yield


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Holds what a step costs on paper."""

    tokens: int
    costs: dict[str, Cost] = field(default_factory=dict)
    aten_calls: int = 0
    host_copies: int = 0
    reads_back: int = 0

    @property
    def total(self) -> Cost:
        """Return the sum over all classes."""
        whole = Cost()
        for cost in self.costs.values():
            whole += cost
        return whole

    def deeper(self, other: Paper, layers: int) -> Paper:
        """Return the step with so many layers more, where `other` has one layer more than this."""
        names = {**self.costs, **other.costs}
        costs = {}
        for name in names:
            here = self.costs.get(name, Cost())
            costs[name] = (other.costs.get(name, Cost()) - here).times(layers)
            costs[name] += here
        grown = {
            name: getattr(self, name) + layers * (getattr(other, name) - getattr(self, name))
            for name in ("aten_calls", "host_copies", "reads_back")
        }
        return Paper(tokens=self.tokens, costs=costs, **grown)


@contextmanager
def _as_on_a_card(counter: Counter) -> Iterator[None]:
    """Take the branches of CUDA that ask for more than a device's name; note the backward pass."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any,
        scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, **_: Any,
    ) -> tuple[Any, None]:  # fmt: skip
        layout = attention.current_step().layout
        return attention._varlen(query, key, value, layout, scaling, sliding_window), None

    backward = torch.autograd.backward

    def noted(*args: Any, **kwargs: Any) -> None:
        counter.backward = True
        backward(*args, **kwargs)
        counter.backward = False

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.autograd, "backward", noted))
        for module in ("torch.utils._foreach_utils", "torch.optim.optimizer", "torch.optim.adam"):
            found = importlib.import_module(module)
            if hasattr(found, "_get_fused_kernels_supported_devices"):
                known = [*found._get_fused_kernels_supported_devices(), "meta"]
                stack.enter_context(patch.object(found, "_get_fused_kernels_supported_devices", lambda k=known: k))
        AttentionInterface.register(attention.NAME, attend)
        stack.callback(AttentionInterface.register, attention.NAME, attention.packed_attention)
        yield


def count(config: Any, point: StepPoint) -> Paper:
    """Count one step, optimizers included, on a base of this transformers configuration."""
    heads, width = config.num_attention_heads, config.head_dim
    # two products of 2 heads width n^2 each, of which causality leaves half
    counter = Counter(sum(2.0 * heads * width * n**2 for job in point.jobs for n in job.lengths))
    keys = functools.lru_cache(maxsize=64)(dropout._channel_keys.__wrapped__)
    with ExitStack() as stack:
        stack.enter_context(patch("transformers.PreTrainedModel.to", lambda model, *_: model))
        stack.enter_context(patch.object(dropout, "_channel_keys", keys))
        stack.enter_context(patch.object(Slab, "initialise", lambda *_, **__: None))
        stack.enter_context(_classes(counter))
        stack.enter_context(_as_on_a_card(counter))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        base = build_base(config, dtype="bf16", device="meta")
        step = PointStep(FusedModel(base), point)
        counter.restart()
        with counter, torch.autograd.set_multithreading_enabled(False):
            step.forward_backward()
            counter.classes[:] = ["optimizer"]
            step.optimize()
    return Paper(
        tokens=point.tokens,
        costs={name: cost for name, cost in counter.costs.items() if cost.kernels},
        aten_calls=counter.aten_calls,
        host_copies=counter.host_copies,
        reads_back=counter.reads_back,
    )
