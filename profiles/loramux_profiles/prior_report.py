"""This report sets the analytic prior beside published figures: published, ours, error.

Run it with `python -m loramux_profiles.prior_report`. Nothing here feeds the models: the report
says how good they are before anything is measured. It has three kinds of rows: `check` (predicted),
`fit` (used to choose a constant, so that its error says little) and `context` (another system or
unknown settings: no claim). Sources: arXiv 2312.02515 (ASPEN; figures digitised, about 1%), arXiv
2404.15159 (MixLoRA), arXiv 2510.00206 (LoRAFusion), and the project's own measurements on a
fake-tensor tracker.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

import pandas as pd

from loramux_profiles.cost import CostModel, Implementation
from loramux_profiles.devices import DeviceProfile, load_device
from loramux_profiles.work import JobCost
from loramux_traces.job import JobSpec

GB: Final = 1e9
MIB: Final = float(1 << 20)
AUTHORS: Final = Implementation(stored_dropout=True, chunked_loss=False)
"""The authors' eager PyTorch code keeps dropout and makes all logits at once."""

#: Memory of one more job, GB, by batch size: (ASPEN, a process of its own); arXiv 2312.02515.
FURTHER_JOB: Final = {2: (1.20, 8.41), 4: (2.86, 10.86), 6: (4.27, 11.88), 8: (5.67, 12.95)}
#: tokens/s of sequential jobs, parallel processes and ASPEN; arXiv 2312.02515. The card of all but
#: LLaMA-7B is inferred: A100.
ASPEN_TOKENS: Final = {
    ("llama-7b", "LLaMA-7B"): (608.4, 649.3, 674.6),
    ("chatglm2-6b", "ChatGLM2-6B"): (524.0, 533.0, 642.0),
    ("llama-13b", "LLaMA-13B"): (370.0, 368.0, 380.0),
    ("llama-2-13b", "LLaMA2-13B"): (301.0, 287.0, 388.0),
}
#: tokens/s of LLaMA-7B on other cards, sequential and ASPEN.
FUSION_GAIN: Final = {"a6000": (505.0, 655.0), "rtx-4090": (593.0, 1027.0)}
#: Measured MiB of a step by (dropout kept, chunked loss, recompute); Llama-8B shape, r16, bf16, T =
#: 4096.
TRACKER: Final = {
    (True, False, False): 60_944.0,
    (False, False, False): 47_216.0,
    (False, True, False): 42_771.0,
    (True, False, True): 22_675.0,
    (False, True, True): 18_230.0,
}
TRACKER_STATIC: Final = 15_397.0
#: Rows that constants were chosen beside: activation_scale, memory.TAIL_BYTES, loss_chunk_tokens.
FIT_ROWS: Final = frozenset({(False, True, False), (True, False, True), (False, True, True)})
LORAFUSION: Final = (13_920.0, 14_875.0)
#: MixLoRA, LLaMA-2-7B: us per token forward + backward in training; GB per model (read as GiB).
MIXLORA_US: Final = {"LoRA": 797.6, "MixLoRA, optimised": 1560.1}

Kind = Literal["check", "fit", "context"]


class Row(NamedTuple):
    """Holds one published figure beside ours."""

    group: str
    what: str
    unit: str
    published: float
    ours: float
    kind: Kind


def _spec(base_model: str, **fields: Any) -> JobSpec:
    values: dict[str, Any] = {
        "job_id": "j",
        "submit_s": 0.0,
        "method": "lora",
        "total_steps": 1.0,
        "length_dist": "constant",
    }
    return JobSpec(**{**values, "base_model": base_model, **fields})


def _authors_spec(base_model: str, rows: int, tokens: float) -> JobSpec:
    """Return a job of the authors: r 8 on q and v, which are Alpaca-LoRA's defaults.

    Their memory per job suggests these settings (inferred).
    """
    return _spec(base_model, batch_size=rows, micro_batch_size=rows, seq_len=tokens, rank=8, target_modules="qv")


def authors_tokens_per_row() -> float:
    """Return the padded tokens per row of the authors' memory figure, which they do not state.

    It is fitted: least squares through their four points of memory per further job, minus what a
    job owns.
    """
    model = CostModel(load_device("aspen-a100-80g"), implementation=AUTHORS)
    cost = model.job_cost(_authors_spec("llama-7b", 1, 100))
    above = sum(rows * (shared * GB - cost.own_bytes) for rows, (shared, _) in FURTHER_JOB.items())
    return above / sum(rows * rows for rows in FURTHER_JOB) / cost.token_bytes


def memory_rows() -> list[Row]:
    """Return the memory of LLaMA-7B jobs under ASPEN and in processes of their own.

    The settings are not published: 8-bit base, r 8 on q and v, and the tokens a row are inferred
    from these same figures, so that the errors of the `check` rows are those of a consistent
    reading, not of a blind prediction.
    """
    tokens = authors_tokens_per_row()
    device = load_device("aspen-a100-80g")
    shared = CostModel(device, implementation=AUTHORS)
    separate = CostModel(device, implementation=AUTHORS, copies="separate")
    group = f"ASPEN memory, LLaMA-7B, 8-bit base, {tokens:.0f} tokens a row"
    rows = []
    for batch, (further, alone) in FURTHER_JOB.items():
        cost = _exact(shared.job_cost(_authors_spec("llama-7b", batch, tokens)), batch * tokens)
        more = shared.expected_bytes([cost] * 2) - shared.expected_bytes([cost])
        rows.append(Row(group, f"one more job, shared base, batch {batch}", "GB", further, more / GB, "fit"))
        rows.append(
            Row(group, f"own process, batch {batch}", "GB", alone, separate.expected_bytes([cost]) / GB, "check")
        )
    cost = _exact(shared.job_cost(_authors_spec("llama-7b", 4, tokens)), 4 * tokens)
    four, apart = shared.expected_bytes([cost] * 4) / GB, separate.expected_bytes([cost] * 4) / GB
    rows.append(Row(group, "4 jobs, shared base, batch 4", "GB", 20.56, four, "check"))
    rows.append(Row(group, "4 jobs, own processes, batch 4", "GB", 43.43, apart, "check"))
    rows.append(Row(group, "memory saved by sharing, 4 jobs", "%", 52.7, 100 * (1 - four / apart), "check"))
    return rows


def _exact(cost: JobCost, tokens: float) -> JobCost:
    """Return the cost with admission at exactly these tokens.

    The figures are of given batches, not of quantiles.
    """
    return replace(cost, tokens_q=tokens)


def tracker_rows() -> list[Row]:
    """Return the memory of the Llama-8B shape on a fake-tensor tracker.

    It has no context, no optimizer states, and 2 bytes per adapter parameter.
    """
    device = load_device("a100-80g")
    group = "Llama-8B shape, r16, bf16, T = 4096, fake-tensor tracker"
    rows = []
    for (dropout, chunked, recompute), measured in TRACKER.items():
        how = Implementation(stored_dropout=dropout, chunked_loss=chunked)
        model = CostModel(device, implementation=how)
        spec = _spec("llama-3-8b", batch_size=1, micro_batch_size=1, seq_len=4096, recompute=recompute, dropout=0.1)
        cost = model.job_cost(spec)
        static = cost.base.weights_bytes + 2 * cost.own_bytes / 18
        dynamic = cost.base.dynamic_bytes - device.b0_bytes + cost.token_bytes * 4096
        text = f"dropout {'kept' if dropout else 'regenerated'}, {'chunked' if chunked else 'full-logit'} loss"
        kind: Kind = "fit" if (dropout, chunked, recompute) in FIT_ROWS else "check"
        text += ", recompute" if recompute else ""
        rows.append(Row(group, text, "MiB", measured, (static + dynamic) / MIB, kind))
    rows.append(Row(group, "static", "MiB", TRACKER_STATIC, static / MIB, "check"))
    return rows


def _tokens_per_s(model: CostModel, costs: Sequence[JobCost]) -> float:
    step = model.expected_step(costs)
    return step.real_tokens / step.seconds


def throughput_rows() -> list[Row]:
    """Return tokens/s of the authors' A100, and of our bf16 prior.

    Two constants are fitted to LLaMA-7B, and all else is predicted.
    """
    tokens = authors_tokens_per_row()
    device = load_device("aspen-a100-80g")
    group = "ASPEN tokens/s, A100, batch 4"
    model = CostModel(device, implementation=AUTHORS)
    rows = []
    for (shape, name), (sequential, parallel, fused) in ASPEN_TOKENS.items():
        cost = model.job_cost(_authors_spec(shape, 4, tokens))
        alone = _tokens_per_s(model, [cost])
        seven = shape == "llama-7b"
        rows.append(Row(group, f"{name} sequential", "tokens/s", sequential, alone, "fit" if seven else "check"))
        phi = device.parallel_curve.phi(4)
        rows.append(Row(group, f"{name} 4 processes", "tokens/s", parallel, alone * phi, "fit" if seven else "check"))
        ours = _tokens_per_s(model, [cost] * 4)
        rows.append(Row(group, f"{name} ASPEN, 4 jobs", "tokens/s", fused, ours, "fit" if seven else "check"))
    for card, (before, after) in FUSION_GAIN.items():
        profile = CostModel(load_device(card))
        cost = profile.job_cost(_authors_spec("llama-7b", 4, tokens))
        gain = _tokens_per_s(profile, [cost] * 4) / _tokens_per_s(profile, [cost])
        rows.append(
            Row(group, f"gain by fusing 4 jobs, {card}, our bf16 profile", "1", after / before, gain, "context")
        )
    prior = CostModel(load_device("a100-80g"))
    ours = _tokens_per_s(prior, [prior.job_cost(_authors_spec("llama-7b", 4, tokens))])
    rows.append(Row(group, "LLaMA-7B sequential, our bf16 profile", "tokens/s", 608.4, ours, "context"))
    return rows


def lorafusion_cost(device: DeviceProfile) -> tuple[CostModel, JobCost]:
    """Return the model and the cost of one of the 4 jobs of LoRAFusion's setting.

    A job has r16 on all linears of the 8B shape and 1,500 tokens a step.
    """
    model = CostModel(device)
    return model, model.job_cost(_spec("llama-3-8b", batch_size=3, micro_batch_size=3, seq_len=500, dropout=0.1))


def other_rows() -> list[Row]:
    """Return LoRAFusion on an H100, launch overheads, and MixLoRA's cost beside LoRA's."""
    model, cost = lorafusion_cost(load_device("h100-80g"))
    rows = [
        Row(
            "LoRAFusion, H100, 8B shape, 4 adapters, 6k tokens a step",
            "tokens/s (middle of 13,920-14,875)",
            "tokens/s",
            sum(LORAFUSION) / 2,
            _tokens_per_s(model, [cost] * 4),
            "fit",
        )
    ]
    floor = cost.base.floor_s + cost.method_floor_s
    bound = (floor - cost.base.read_s) / cost.token_s
    rows.append(Row("Launch-bound steps, H100, 8B shape", "tokens below which", "token", 1000.0, bound, "fit"))
    us = {}
    a100 = CostModel(load_device("a100-80g"))
    for name, method in zip(MIXLORA_US, ("lora", "mixlora"), strict=True):
        job = a100.job_cost(_spec("llama-2-7b", method=method, batch_size=8, micro_batch_size=8, seq_len=512))
        us[name] = 1e6 / _tokens_per_s(a100, [job])
    for name, published in MIXLORA_US.items():
        rows.append(
            Row("MixLoRA, LLaMA-2-7B, settings unknown", f"{name}, us/token", "us", published, us[name], "context")
        )
    a, b = MIXLORA_US.values()
    c, d = us.values()
    rows.append(Row("MixLoRA, LLaMA-2-7B, settings unknown", "MixLoRA over LoRA", "1", b / a, d / c, "context"))
    adapter_extra = a100.job_cost(_spec("llama-2-7b", method="mixlora", batch_size=1, seq_len=512)).token_bytes
    lora = a100.job_cost(_spec("llama-2-7b", batch_size=1, seq_len=512)).token_bytes
    scale = a100.device.activation_scale * 32 * 11008 * 2
    rows.append(
        Row(
            "MixLoRA activations (k = 2)", "more than LoRA, elements/f", "1", 5.0, (adapter_extra - lora) / scale, "fit"
        )
    )
    return rows


def prior_report() -> pd.DataFrame:
    """Return all rows of the report as one table.

    Its columns: group, what, unit, published, ours, error (ours / published - 1), kind (check, fit,
    context).
    """
    table = pd.DataFrame(
        [*memory_rows(), *tracker_rows(), *throughput_rows(), *other_rows()], columns=list(Row._fields)
    )
    table.insert(5, "error", table["ours"] / table["published"] - 1)
    return table


def as_text(table: pd.DataFrame) -> str:
    """Return the report as plain text.

    It has the mean and the largest error of what was predicted.
    """
    lines = []
    for group, part in table.groupby("group", sort=False):
        lines.append(str(group))
        lines.extend(
            f"  {row.what:54} {row.published:11,.2f} {row.ours:11,.2f} {row.unit:9}{row.error:+8.1%}  {row.kind}"
            for row in part.itertuples()
        )
        checked = part.loc[part["kind"] == "check", "error"].abs()
        if len(checked):
            lines.append(f"  predicted: mean error {checked.mean():.1%}, largest {checked.max():.1%}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_text(prior_report()))
