"""PEFT on the same jobs.

One model, an adapter per job, jobs one after the other (PEFT trains one adapter at a time).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from runtime_work import IGNORED, LR, Rows, config, labels_of


class Peft:
    """Sequential LoRA training with PEFT as its users run it.

    `padded`: a job's batch is padded to its longest row, with an attention mask. `packed`: the rows
    stand one after the other in one row with position ids that start again (use_cache=False:
    otherwise sdpa attends across them).
    """

    def __init__(
        self,
        base_state: dict[str, torch.Tensor],
        jobs: list[tuple[str, Any]],
        rows: Rows,
        form: Literal["padded", "packed"],
        answers: bool = False,
    ) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        hf = AutoModelForCausalLM.from_config(config(), dtype=torch.float32, attn_implementation="sdpa")
        hf.load_state_dict(base_state)
        self.form = form
        self.model: Any = None
        for i, (_, lora) in enumerate(jobs):
            theirs = peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                task_type="CAUSAL_LM",
            )
            if self.model is None:
                self.model = peft.get_peft_model(hf, theirs, adapter_name=f"job-{i}")
            else:
                self.model.add_adapter(f"job-{i}", theirs)
        self.model.train()
        self.optimizers = []
        for i in range(len(jobs)):
            self.model.set_adapter(f"job-{i}")
            own = [p for name, p in self.model.named_parameters() if f".job-{i}." in name]
            self.optimizers.append(torch.optim.AdamW(own, lr=LR, fused=True))
        self.batches = [self._batch(job, answers) for job in rows]

    def _batch(self, job: list[np.ndarray[Any, np.dtype[np.int64]]], answers: bool) -> dict[str, torch.Tensor]:
        rows = [torch.from_numpy(row) for row in job]
        learned = [torch.from_numpy(labels_of(row, answers)) for row in job]
        pad = torch.nn.utils.rnn.pad_sequence
        if self.form == "padded":
            return {
                "input_ids": pad(rows, batch_first=True),
                "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
                "labels": pad(learned, batch_first=True, padding_value=IGNORED),
            }
        labels = [torch.cat([torch.tensor([IGNORED]), row[1:]]) for row in learned]
        return {
            "input_ids": torch.cat(rows).unsqueeze(0),
            "position_ids": torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0),
            "labels": torch.cat(labels).unsqueeze(0),
        }

    def __call__(self) -> None:
        """One step of every job."""
        for i, (batch, optimizer) in enumerate(zip(self.batches, self.optimizers, strict=True)):
            self.model.set_adapter(f"job-{i}")
            self.model(**batch, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
