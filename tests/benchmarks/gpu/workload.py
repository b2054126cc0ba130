"""Jobs of the suite: random tokens of real lengths, adapters of the usual sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch

from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.adapters.mola.config import MolaConfig
from loramux_runtime.fused.base_model import BaseModel, build_base, shape_config
from loramux_runtime.fused.model import FusedModel
from loramux_runtime.fused.packing import MicroBatch, Part

TINY: Final = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
}
METHODS: Final[dict[str, Any]] = {
    "lora": LoraConfig(rank=16, alpha=32, dropout=0.1),
    "mixlora": MixLoraConfig(rank=16, alpha=32, dropout=0.1),
    "mola": MolaConfig(rank=8, alpha=16, dropout=0.1),
    "dynmole": DynMoleConfig(dropout=0.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fused step to measure."""

    model: str
    method: str
    jobs: int
    rows: int
    """Of each job."""
    length: int
    """Mean tokens of a row; rows have from half to one and a half times as many."""
    recompute: bool = False

    @property
    def key(self) -> str:
        """Names it among the results."""
        again = " recompute" if self.recompute else ""
        return f"{self.model} {self.method} {self.jobs}x{self.rows}x{self.length}{again}"


def load(model: str, device: torch.device, *, tiny: bool) -> BaseModel:
    """A base of that shape with random weights, bf16 (fp32 on CPU)."""
    config = shape_config(model, **(TINY if tiny else {}))
    return build_base(config, name=model, dtype="bf16" if device.type == "cuda" else "fp32", device=device)


def batch(case: Case, job: int, vocab: int, step: int = 0) -> MicroBatch:
    """One job's micro-batch of a step; the lengths of a case are the same in every run."""
    rng = np.random.default_rng([job, step])
    lengths = np.linspace(0.5, 1.5, case.rows) * case.length if case.rows > 1 else [case.length]
    rows = tuple(rng.integers(0, vocab, max(2, int(n))) for n in lengths)
    first = step * case.rows
    return MicroBatch(tokens=rows, labels=rows, samples=tuple(range(first, first + case.rows)), step=step)


class Fused:
    """Our fused step with an AdamW step for every job."""

    def __init__(self, case: Case, base: BaseModel) -> None:
        self.model = FusedModel(base, recompute=case.recompute)
        self.adapters = [
            self.model.new_adapter(f"j{i}", case.method, METHODS[case.method], seed=i) for i in range(case.jobs)
        ]
        self._params = [torch.nn.Parameter(adapter.slab.params) for adapter in self.adapters]
        fused = base.device.type == "cuda"
        self._optimizers = [torch.optim.AdamW([p], lr=1e-4, fused=fused) for p in self._params]
        self._batches = [batch(case, i, base.vocab) for i in range(case.jobs)]
        self._step = 0

    @property
    def tokens(self) -> int:
        """Real tokens of a step."""
        return sum(b.n_tokens for b in self._batches)

    def __call__(self) -> None:
        """One step of every job."""
        parts = [
            Part(adapter=a, batch=replace(b, step=self._step))
            for a, b in zip(self.adapters, self._batches, strict=True)
        ]
        self.model.step(parts)
        for adapter, param, optimizer in zip(self.adapters, self._params, self._optimizers, strict=True):
            param.grad = adapter.slab.grads
            optimizer.step()
            adapter.slab.version += 1
            adapter.slab.grads.zero_()
        self._step += 1


class PeftSequential:
    """The same jobs as PEFT users run them: one after the other, rows padded to the longest."""

    def __init__(self, case: Case, device: torch.device, *, tiny: bool) -> None:
        import transformers
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model

        auto: Any = transformers.AutoModelForCausalLM
        config = shape_config(case.model, **(TINY if tiny else {}))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with device:
            hf = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
        ours = METHODS["lora"]
        peft = PeftConfig(
            r=ours.rank,
            lora_alpha=int(ours.alpha),
            lora_dropout=ours.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        self._model: Any = get_peft_model(hf, peft, adapter_name="j0")
        for i in range(1, case.jobs):
            self._model.add_adapter(f"j{i}", peft)
        if case.recompute:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
            self._model.enable_input_require_grads()
        self._model.train()
        self._optimizers = []
        self._inputs = []
        self.tokens = 0
        for i in range(case.jobs):
            self._model.set_adapter(f"j{i}")
            params = [p for p in self._model.parameters() if p.requires_grad]
            self._optimizers.append(torch.optim.AdamW(params, lr=1e-4, fused=device.type == "cuda"))
            rows = batch(case, i, config.vocab_size).tokens
            width = max(map(len, rows))
            ids = torch.zeros(len(rows), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)] = torch.from_numpy(tokens)
                mask[row, : len(tokens)] = 1
                self.tokens += len(tokens)
            labels = ids.masked_fill(mask == 0, -100)
            self._inputs.append([t.to(device) for t in (ids, mask, labels)])

    def __call__(self) -> None:
        """One step of every job, in turn."""
        for i, (optimizer, (ids, mask, labels)) in enumerate(zip(self._optimizers, self._inputs, strict=True)):
            self._model.set_adapter(f"j{i}")
            loss = self._model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
