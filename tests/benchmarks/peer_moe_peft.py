"""moe-peft 2.0.2 on the same MixLoRA jobs.

Run by bench_runtime.py in the peer's own environment.

    MOE_PEFT_EXECUTOR_TYPE=CPU python peer_moe_peft.py WORK.json

Prints `ready`, then after every line read from its input takes one fused step (forward, backward,
each job's AdamW) and prints its CPU-seconds. WORK.json: the folder of the base model, the jobs'
numbers and their rows.

Set up (once):
    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 "numpy<3" "huggingface-hub<1" "tokenizers>=0.20,<0.21"
        safetensors pyyaml regex requests tqdm psutil packaging
    VENV/bin/pip install --no-deps moe-peft==2.0.2 transformers==4.46.3 peft==0.11.1 accelerate
"""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from importlib.util import find_spec
from typing import Any

import transformers.utils  # noqa: F401  (looks for optional packages itself, before two of them are faked)


class _Absent(types.ModuleType):
    """A package that moe_peft imports for data and evaluation only; neither is used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for absent in ("datasets", "evaluate"):
    if find_spec(absent) is None:
        sys.modules[absent] = _Absent(absent)

import moe_peft  # noqa: E402
import torch  # noqa: E402
from moe_peft.adapters import MixLoraConfig  # noqa: E402
from moe_peft.common import LLMBatchConfig, LLMModelInput  # noqa: E402


def main(path: str) -> None:
    """Set up the jobs and step on demand."""
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with open(path, encoding="utf-8") as stream:
        work = json.load(stream)
    model = moe_peft.LLMModel.from_pretrained(work["base"], device="cpu", attn_impl="eager", load_dtype=torch.float32)
    optimizers = []
    for i, job in enumerate(work["jobs"]):
        name = f"job-{i}"
        model.init_adapter(
            MixLoraConfig.from_config(
                {"name": name, "task_name": "casual", "routing_strategy": "mixlora", **job}
            ).check()
        )
        own = [p for p in model.get_adapter_weight_dict(name).values() if p.requires_grad]
        optimizers.append(torch.optim.AdamW(own, lr=work["lr"]))
    longest = max(len(row) for job in work["rows"] for row in job)
    tokens, labels, masks, parts = [], [], [], []
    for i, job in enumerate(work["rows"]):
        parts.append((f"job-{i}", len(tokens), len(tokens) + len(job)))
        for row in job:  # its dispatcher pads every row of the fused batch to the longest
            rest = longest - len(row)
            tokens.append(row + [work["pad"]] * rest)
            labels.append(row + [-100] * rest)
            masks.append([1] * len(row) + [0] * rest)
    n_params = sum(p.numel() for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])
    print(json.dumps({"ready": True, "torch": torch.__version__, "n_params": n_params}), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        outputs = model.forward(
            LLMModelInput(
                batch_configs_=[
                    LLMBatchConfig(adapter_name_=name, batch_start_idx_=a, batch_end_idx_=b) for name, a, b in parts
                ],
                batch_tokens_=tokens,
                batch_labels_=labels,
                batch_masks_=masks,
            )
        )
        losses = [out.loss if out.aux_loss is None else out.loss + out.aux_loss for out in outputs]
        sum(losses).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        print(json.dumps({"seconds": time.process_time() - start, "loss": float(sum(losses))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
