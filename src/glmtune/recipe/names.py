"""Hints for unknown settings and values: names of other programs, and near misses of our own."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from glmtune.near import nearest
from glmtune.paths import setting_of, split_paths
from glmtune.recipe.describe import describe
from glmtune.recipe.flags import CARRIED, DROPPED, NOT_CARRIED, OPTIMIZERS, SCHEDULES
from glmtune.recipe.method import METHOD_SETTINGS
from glmtune.recipe.settings import Recipe


def _plain(value: object) -> str:
    """Reduce a value to lower-case letters and digits: `P-Tuning v2` and `ptuning_v2` are one spelling."""
    return re.sub("[^a-z0-9]", "", str(value).lower())


_WORD = re.compile(r"[\w./:~+-]{1,80}")
"""Matches a value that needs no quotes on a command line."""
_ACCUMULATED = "; train.batch_size counts all rows of a step, those of every card and accumulated ones"

FOREIGN: Mapping[str, str] = {
    **{name: f"{key}={{}}" for name, (key, _) in CARRIED.items()},
    **dict.fromkeys(("model_name_or_path", "model_path", "model_name", "base_model"), "model={}"),
    **dict.fromkeys(
        ("adapter_name_or_path", "ptuning_checkpoint", "checkpoint_dir", "lora_path"),
        "model={}, which is gone on from by its own method",
    ),
    **dict.fromkeys(("train_file", "train_data", "data_path", "dataset", "dataset_path"), "data.train={}"),
    **dict.fromkeys(("validation_file", "val_file", "eval_file", "eval_dataset"), "data.validation={}"),
    "test_file": "data.test={}",
    "name": "data.fill.name={}, for rows that have {{name}}",
    "author": "data.fill.author={}, for rows that have {{author}}",
    **dict.fromkeys(("output_dir", "save_dir"), "output={}"),
    **dict.fromkeys(("max_samples", "max_train_rows"), "data.max_rows={}"),
    **dict.fromkeys(
        ("val_size", "validation_split", "test_size", "val_ratio", "validation_ratio", "eval_ratio"),
        "data.holdout_rows={} rows; without it 5 %, at most 200, are held out",
    ),
    **dict.fromkeys(("cutoff_len", "max_length", "max_seq_length", "max_seq_len"), "data.max_tokens={}"),
    "max_input_length": "data.max_source_tokens={}",
    "max_output_length": "data.max_target_tokens={}",
    "max_steps": "train.steps={}",
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epoch"), "train.epochs={}"),
    "per_device_train_batch_size": "train.micro_batch_size={}" + _ACCUMULATED,
    "gradient_accumulation_steps": "train.batch_size=..." + _ACCUMULATED,
    "per_device_eval_batch_size": "evaluate.batch_size={}",
    "lr_scheduler_type": "train.schedule={}",
    "warmup_ratio": "train.warmup_steps=...",
    "optim": "train.optimizer={}",
    "eval_steps": "train.eval_every={}",
    "early_stopping_patience": "train.patience={}",
    **{name: f"train.precision={name}" for name in ("fp16", "bf16")},
    **dict.fromkeys(("torch_dtype", "model_dtype"), "dtype={}"),
    "quantization_bit": "quant=int{}",
    "load_in_8bit": "quant=int8",
    "load_in_4bit": "quant=nf4",
    **dict.fromkeys(("finetuning_type", "peft_type", "tuner", "peft_method"), "method={}"),
    **dict.fromkeys(("lora_r", "lora_rank", "lora_dim", "rank"), "method.r={}"),
    "lora_alpha": "method.alpha={}",
    "lora_dropout": "method.dropout={}",
    **dict.fromkeys(("lora_target", "lora_target_modules"), "method.target_modules={}"),
    **dict.fromkeys(("pre_seq_len", "num_virtual_tokens"), "method=ptuning method.num_prefix_tokens={}"),
    "prefix_projection": "method=ptuning method.projection=true",
    "freeze_trainable_layers": "method=freeze method.num_layers={}",
}
"""Settings of other programs -> the words that say it here, `{}` for the value.

Sources: those of `recipe/flags.py`; finetune_hf.py of github.com/THUDM/ChatGLM3; LoraConfig and
PromptLearningConfig of github.com/huggingface/peft; hparams/ of github.com/hiyouga/LLaMA-Factory.
"""

NEEDLESS: Mapping[str, str] = {
    **DROPPED,
    **NOT_CARRIED,
    "deepspeed": "distributed=deepspeed is its engine here; several cards: "
    "`torchrun --nproc-per-node 2 -m glmtune train ...`",
    "stage": "rows with an answer are learned, always",
    "task_type": "the model's folder says it",
    "lora_bias": "biases are not trained",
}
"""Settings of other programs -> the reason to leave them out."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "method": {
        "qlora": "method=lora quant=nf4",
        **dict.fromkeys(("ptuningv2", "prefix", "prefixtuning", "pt", "ptv2"), "method=ptuning"),
        **dict.fromkeys(("sft", "finetune", "fullparameter", "none"), "method=full"),
        "dora": "method=lora method.use_dora=true",
        "rslora": "method=lora method.use_rslora=true",
    },
    "quant": {
        **dict.fromkeys(("4", "4bit", "w4", "q4"), "quant=int4"),
        **dict.fromkeys(("8", "8bit", "w8", "q8"), "quant=int8"),
        **dict.fromkeys(("bnb", "bitsandbytes", "qlora", "fp4"), "quant=nf4"),
    },
    **{
        key: {
            **dict.fromkeys(("float16", "half", "torchfloat16"), f"{key}=fp16"),
            **dict.fromkeys(("bfloat16", "torchbfloat16"), f"{key}=bf16"),
            **dict.fromkeys(("float32", "float", "torchfloat32"), f"{key}=fp32"),
        }
        for key in ("dtype", "train.precision")
    },
    "train.schedule": {_plain(name): f"train.schedule={ours}" for name, ours in SCHEDULES.items()},
    "train.optimizer": {_plain(name): f"train.optimizer={ours}" for name, ours in OPTIMIZERS.items()},
}
"""By setting: values of other programs, as `_plain` spells them -> the words that say them here."""


def name_here(name: str, value: object = "...") -> str:
    """Return a hint for an unknown name in any group: the setting it means here; empty if none is known.

    `value` is part of the hint if that setting takes it.
    """
    # our own setting in another group, such as `lr` for `train.lr`
    own = [key for key in dict.fromkeys(row.key for row in describe()) if key.split(".")[-1] == name]
    if own and name != "name":
        return f"did you mean {' or '.join(_filled(f'{key}={{}}', value) for key in own)}?"
    if name in FOREIGN:
        return f"here that is {_filled(FOREIGN[name], value)}"
    if name not in NEEDLESS and (near := nearest(name, FOREIGN)):
        return f"did you mean {near}? here that is {_filled(FOREIGN[near], value)}"
    return f"leave it out: {NEEDLESS[name]}" if name in NEEDLESS else ""


def nearest_setting(key: str, siblings: Collection[str], value: object = "...") -> str:
    """Return a hint for a misspelled `group.name`; empty if no setting of the group is similar."""
    *groups, name = key.split(".")
    near = nearest(name, siblings, has_parts=True)
    if not near:
        return ""
    whole = ".".join((*groups, near))
    is_setting = any(row.key == whole for row in describe())
    return f"did you mean {_filled(f'{whole}={{}}', value) if is_setting else whole}?"


def in_item(name: str, siblings: Collection[str], value: object = "...") -> str:
    """Return a hint for an unknown name in an item of a list, which no `key=value` word can set alone."""
    hint = name_here(name, value)
    foreign = re.search(r"data\.(\w+)=", hint)
    near = nearest(name, siblings, has_parts=True)
    setting = near or (foreign[1] if foreign and foreign[1] in siblings else "")
    return f"did you mean `{setting}` in that item?" if setting else hint


def value_here(key: str, value: object, allowed: Collection[str]) -> str:
    """Return a hint for a value that is not allowed: the one it means here; empty if none is known."""
    spelled = _plain(value)
    if spelled in VALUES.get(key, {}):
        return f"here that is {VALUES[key][spelled]}"
    plain = {_plain(name): name for name in allowed}
    near = nearest(spelled, plain)
    return f"did you mean {key}={plain[near]}?" if near else ""


def _filled(words: str, value: object) -> str:
    """Put the value into the words; `...` if it cannot be typed as it is, or the setting does not take it."""
    match = re.search(r"([\w.]+)=(\w*)\{\}", words)
    if not match:
        return words
    key, before = match.groups()
    if key == "data.train":  # several files, as a list or as a text like `a.json,b.json`
        names = split_paths(value) if isinstance(value, str) else value
        if (
            isinstance(names, list | tuple)
            and len(names) > 1
            and all(isinstance(name, str) for name in names)
            and (word := setting_of(names))
        ):
            return words.replace(match[0], word)
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    fits = _WORD.fullmatch(text) and _is_valid(key, before + text if before else value)
    return words.replace("{}", text) if fits else words.replace(before + "{}", "...")


def _is_valid(key: str, value: object) -> bool:
    """True if a recipe with this setting alone has no error in it."""
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    # a method's setting is valid only under a method that has it
    if isinstance(nested.get("method"), dict):
        name = key.partition(".")[2]
        nested["method"].setdefault("name", methods_with(name)[0])
    elif "method" in nested:
        nested["method"] = {"name": value}
    try:
        Recipe.model_validate(nested)
    except ValidationError as err:  # perhaps only of other settings, which are missing
        return not any(key.split(".")[-1] in problem["loc"] for problem in err.errors())
    return True


def methods_with(name: str) -> list[str]:
    """Return the methods that have a setting of this name."""
    return [method for method, kind in METHOD_SETTINGS.items() if name in kind.model_fields]
