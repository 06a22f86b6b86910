"""Flags of the official programs and of transformers' Trainer -> our settings.

Sources: ptuning/arguments.py and main.py of github.com/THUDM/ChatGLM-6B and ChatGLM2-6B; `TrainingArguments`
and `Seq2SeqTrainingArguments` of github.com/huggingface/transformers, whose defaults `TRAINER` lists.
"""

from collections.abc import Callable, Mapping
from typing import Any

TRAINER: Mapping[str, str] = {
    "per_device_train_batch_size": "8",
    "per_device_eval_batch_size": "8",
    "gradient_accumulation_steps": "1",
    "learning_rate": "5e-5",
    "num_train_epochs": "3.0",
    "logging_steps": "500",
    "save_steps": "500",
    "lr_scheduler_type": "linear",
}
"""The Trainer's defaults that differ from ours, or matter to a recipe."""

MAIN: Mapping[str, str] = {"max_source_length": "1024", "max_target_length": "128"}
"""main.py's own defaults."""

Reader = Callable[[str], Any]

CARRIED: Mapping[str, tuple[str, Reader]] = {
    "prompt_column": ("data.prompt_column", str),
    "response_column": ("data.response_column", str),
    "history_column": ("data.history_column", str),
    "source_prefix": ("data.source_prefix", str),
    "max_train_samples": ("data.max_rows", int),
    "max_source_length": ("data.max_source_tokens", int),
    "max_target_length": ("data.max_target_tokens", int),
    "per_device_train_batch_size": ("train.micro_batch_size", int),
    "learning_rate": ("train.lr", float),
    "weight_decay": ("train.weight_decay", float),
    "adam_beta1": ("train.adam_beta1", float),
    "adam_beta2": ("train.adam_beta2", float),
    "adam_epsilon": ("train.adam_epsilon", float),
    "max_grad_norm": ("train.max_grad_norm", float),
    "warmup_steps": ("train.warmup_steps", int),
    "seed": ("train.seed", int),
    "logging_steps": ("train.log_every", int),
    "save_steps": ("train.save_every", int),
    "save_total_limit": ("train.keep_checkpoints", int),
    "model_revision": ("revision", str),
}
"""Flags with one setting here: its key, and the function that reads the flag's text."""

DROPPED: Mapping[str, str] = {
    "do_train": "the verb says it",
    "do_eval": "the loss of the validation rows is always taken",
    "do_predict": "the verb says it",
    "overwrite_cache": "no cache of rows is kept",
    "overwrite_output_dir": "nothing is ever overwritten",
    "preprocessing_num_workers": "rows are encoded in one go",
    "dataloader_num_workers": "rows are encoded before the first step",
    "dataloader_pin_memory": "no matter for the result",
    "num_proc": "rows are encoded in one go",
    "predict_with_generate": "`glmtune evaluate` always answers",
    "remove_unused_columns": "only the named columns are read",
    "cache_dir": "the hub's own cache is used: HF_HOME",
    "use_fast_tokenizer": "the family has one tokenizer",
    "use_auth_token": "HF_TOKEN is read",
    "trust_remote_code": "no code of the model's folder is ever run",
    "pad_to_max_length": "pads change neither loss nor gradient",
    "group_by_length": "the order of rows is ours, seeded",
    "logging_strategy": "steps, always",
    "logging_dir": "figures go to metrics.jsonl",
    "logging_first_step": "every step is in metrics.jsonl",
    "log_level": "no matter for the result",
    "report_to": "figures go to metrics.jsonl; train.report_to=[wandb] sends them elsewhere too",
    "run_name": "the run's folder names it",
    "disable_tqdm": "the bar shows on terminals only",
    "local_rank": "torchrun sets it",
    "ddp_find_unused_parameters": "no matter for the result",
    "ddp_timeout": "no matter for the result",
    "save_safetensors": "always safetensors",
    "save_strategy": "steps, always",
    "gradient_checkpointing": "auto: on where the memory needs it",
    "use_cpu": "device: auto finds the card, or takes the CPU",
    "no_cuda": "device: auto finds the card, or takes the CPU",
    "bf16_full_eval": "weights are held in the type they are stored in",
}
"""Flags that have no influence on the weights, and the reason why they are not needed here."""

NOT_CARRIED: Mapping[str, str] = {
    "max_eval_samples": "an evaluation answers the test rows",
    "num_beams": "answers are greedy: the most likely token each time",
    "resume_from_checkpoint": "the Trainer's optimizer files are not read; this begins anew",
    "config_name": "the model's folder has its configuration",
    "tokenizer_name": "the model's folder has its tokenizer",
    "generation_max_length": "evaluate.max_new_tokens counts the answer alone",
    "resize_position_embeddings": "positions are rotary: there is nothing to resize",
    "dataset_name": "a data set of the Hub is data.train=hf:OWNER/NAME",
    "label_smoothing_factor": "the loss is the plain one",
    "neftune_noise_alpha": "embeddings get no noise",
    "load_best_model_at_end": "a run's `best` link is that checkpoint",
    "dataloader_drop_last": "the last rows of an epoch are a smaller step",
    "fp16_opt_level": "apex is not used",
    "fsdp": "distributed=fsdp2 shares the weights out",
}
"""Flags whose meaning is lost, and the reason or replacement."""

UNKNOWN = "no setting here does this"

OPTIMIZERS: Mapping[str, str] = {
    **dict.fromkeys(("adamw_hf", "adamw_torch", "adamw_torch_fused"), "adamw"),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), "adamw_8bit"),
}

SCHEDULES: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


def is_on(flags: Mapping[str, str | None], name: str) -> bool:
    """True if a switch is set: bare, or with any word but `false`, `0`, `no` and `none`."""
    return name in flags and (flags[name] or "true").lower() not in ("false", "0", "no", "none")
