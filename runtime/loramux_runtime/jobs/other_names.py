"""Say where ours stands for the names that other trainers give the fields of a job.

PEFT, TRL (with transformers), axolotl, LLaMA-Factory and unsloth have fields of one level, ours lie
in parts. This is the one table of them, for every part of a jobs file; a test holds that every
place in it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Final

from loramux_runtime.data import DataConfig
from loramux_runtime.fused.adapters.configs import CONFIGS
from loramux_runtime.jobs.peft_fields import REFUSED

#: Our place -> other names of it. What stands behind the place says how it is counted here.
_NAMES: Final = {
    "id": "run_name job_id",
    "method": "peft_type peft_method finetuning_type routing_strategy",
    "batch_size (rows per optimizer step)": "train_batch_size global_batch_size effective_batch_size",
    "batch_size (rows per optimizer step, gradient accumulation included)": "gradient_accumulation_steps grad_accum",
    "micro_batch_size (rows per pass; batch_size is those of an optimizer step)": (
        "per_device_train_batch_size per_device_batch_size"
    ),
    "steps": "max_steps num_steps num_train_steps total_steps train_steps",
    "epochs": "num_train_epochs num_epochs n_epochs train_epochs max_epochs",
    "seed": "data_seed random_seed random_state",
    "max_grad_norm": "gradient_clipping gradient_clip_val max_gradient_norm grad_clip grad_clip_norm clip_grad_norm",
    "optimizer.name": "optim optimizer_type",
    "optimizer.lr": "lr learning_rate base_lr lora_lr",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.betas": "betas adam_betas adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "eps adam_eps adam_epsilon epsilon",
    "optimizer.momentum": "momentum",
    "schedule.name": "lr_scheduler lr_scheduler_type scheduler scheduler_type lr_schedule",
    "schedule.warmup_steps": "warmup_steps num_warmup_steps lr_warmup_steps warmup",
    "schedule.warmup_steps (a number of steps, no share of them)": "warmup_ratio",
    "evaluation.every_steps": "every_steps eval_steps evals_per_epoch eval_strategy evaluation_strategy eval_every",
    "evaluation.patience": "patience early_stopping_patience early_stopping",
    "evaluation.min_improvement": "min_improvement min_delta early_stopping_threshold",
    "data.path": (
        "dataset datasets dataset_name dataset_path dataset_dir data_path data_file data_files train_file train_data "
        "train_dataset file"
    ),
    "data.max_tokens": (
        "cutoff_len sequence_len max_seq_length max_seq_len max_length model_max_length block_size seq_length "
        "truncation_max_length"
    ),
    "data.eval_path": "eval_file eval_data eval_dataset eval_datasets test_datasets validation_file test_file",
    "data.eval_rows": "eval_size n_eval",
    "data.eval_fraction (a share; data.eval_rows is a number of rows)": (
        "val_set_size val_size test_size test_split_ratio validation_split validation_split_percentage"
    ),
    "data.limit": "max_samples max_train_samples num_samples",
    "data.shuffle (false: the order of the file)": "shuffle_dataset disable_shuffling",
    "data.format": "formatting dataset_format",
    "data.template": "prompt_template prompt_style",
    "data.use_chat_template": "chat_template apply_chat_template",
    "data.answers_only (true: prompts are not learned)": (
        "train_on_inputs train_on_prompt train_on_input completion_only_loss assistant_only_loss mask_prompt "
        "train_on_responses_only"
    ),
    "data.text_field": "dataset_text_field text_column",
    "data.instruction_field": "field_instruction prompt_column prompt_field",
    "data.input_field": "field_input",
    "data.output_field": "field_output response_column completion_field response_field",
    "data.messages_field": "field_messages messages_column chat_field",
    "adapter.rank": "r lora_r lora_rank lora_dim",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.target_modules": "lora_target lora_target_modules lora_target_linear target_linear",
    "adapter.use_rslora": "rslora lora_use_rslora peft_use_rslora",
    "adapter.use_dora": "dora lora_use_dora peft_use_dora",
    "adapter.num_experts": "experts n_experts num_local_experts",
    "base.path": (
        "base_model base_model_name_or_path model model_name model_name_or_path model_path model_id "
        "pretrained_model_name_or_path name_or_path"
    ),
    "base.dtype": "torch_dtype bf16 bfloat16 pure_bf16 precision mixed_precision dtype",
    "base.dtype (fp32 or bf16)": "fp16 float16 tf32",
}
#: What is not supported -> names that ask for it.
_MISSING: Final = {
    "rows are always packed without padding, and none sees another": (
        "packing sample_packing eval_packing eval_sample_packing neat_packing pad_to_sequence_len padding_free "
        "group_by_length pad_to_max_length"
    ),
    "the base is in fp32 or bf16": (
        "load_in_4bit load_in_8bit quantization quantization_bit quantization_method quantization_config "
        "double_quantization bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant gptq"
    ),
    "data.path is one file; data.eval_path, eval_rows and eval_fraction hold rows out": (
        "split train_split eval_split test_split dataset_split subset train_on_split"
    ),
    "a job runs on one device": "deepspeed fsdp fsdp_config ddp_find_unused_parameters num_gpus tensor_parallel_size",
    "kernels are chosen by device": (
        "flash_attention flash_attn flash_attention_2 attn_implementation sdp_attention xformers_attention "
        "use_flash_attention_2 use_liger_kernel enable_liger_kernel torch_compile"
    ),
    "a run is of adapters alone": "full_finetuning unfrozen_parameters freeze_trainable_layers",
    "there is no loss but cross-entropy": (
        "label_smoothing_factor label_smoothing neftune_noise_alpha neftune_alpha noisy_embedding_alpha "
        "loss_type dpo_beta pref_beta rl"
    ),
    "all of an adapter has one learning rate": "loraplus_lr_ratio loraplus_lr_embedding embedding_lr",
    "an adapter begins with a zero update": (
        "init_lora_weights peft_init_lora_weights pissa_init use_pissa use_olora use_loftq loftq_config"
    ),
    "code from a model's folder is never run": "trust_remote_code",
}
#: Option of `loramux train` -> names of what it does.
_OPTIONS: Final = {
    "--recompute": "gradient_checkpointing use_gradient_checkpointing activation_checkpointing",
    "--out": "output_dir",
    "--checkpoint-every": "save_steps save_strategy saves_per_epoch save_total_limit",
    "--resume": "resume_from_checkpoint auto_resume_from_checkpoints",
    "--quiet": "disable_tqdm",
}


def _said() -> dict[str, str]:
    own = {name: f"adapter.{name}" for config in CONFIGS.values() for name in (field.name for field in fields(config))}
    own |= {name: f"data.{name}" for name in DataConfig.model_fields}
    said = {name: f"in a job it is {place}" for name, place in own.items()}
    for place, names in _NAMES.items():
        where = "in the file, beside jobs, it is" if place.startswith("base.") else "in a job it is"
        said |= dict.fromkeys(names.split(), f"{where} {place}")
    for name, refused in REFUSED.items():
        said[name] = f"this is not supported: {refused.rpartition(': ')[2]}"
    for why, names in _MISSING.items():
        said |= dict.fromkeys(names.split(), f"this is not supported: {why}")
    for option, names in _OPTIONS.items():
        said |= dict.fromkeys(names.split(), f"for all jobs it is the option {option} of loramux train")
    return said


_SAID: Final = _said()


def elsewhere(name: str, within: Sequence[str | int] = ()) -> str:
    """Return where ours stands for a field that is not known at its place, or that there is none.

    It is '' where nobody knows the name. `within` is the part of the job in which it stands; within
    the attention's adapter of an adapter ours is there too.
    """
    said = _SAID.get(name.strip().lower().replace("-", "_"), "")
    part = ".".join(str(piece) for piece in within)
    if part.startswith("adapter"):
        said = said.replace("in a job it is adapter.", f"in a job it is {part}.")
    return "" if said == f"in a job it is {part}.{name}" else said
