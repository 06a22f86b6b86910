"""What a setting, or its value, that other programs have is called here; near misses of our own names."""

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


def _plain(value: Any) -> str:
    """A value in small letters and digits alone, as people spell it in many ways."""
    return re.sub("[^a-z0-9]", "", str(value).lower())


_WORD = re.compile(r"[\w./:~+-]{1,80}")
"""A value that is typed as it is."""
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
"""By their name: the words that say it here, `{}` standing for the value.

Sources: those of `recipe/flags.py`; finetune_hf.py of github.com/THUDM/ChatGLM3; LoraConfig and
PromptLearningConfig of github.com/huggingface/peft; hparams/ of github.com/hiyouga/LLaMA-Factory.
"""

NEEDLESS: Mapping[str, str] = {
    **DROPPED,
    **NOT_CARRIED,
    "deepspeed": "each process holds the whole model; several cards: "
    "`torchrun --nproc-per-node 2 -m glmtune train ...`",
    "stage": "rows with an answer are learned, always",
    "task_type": "the model's folder says it",
    "lora_bias": "biases are not trained",
}
"""By their name: why it is left out."""

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
"""By setting: values of other programs, in letters and digits alone, and the words that say them here."""


def name_here(name: str, value: Any = "...") -> str:
    """The hint for a name that is no setting, wherever it stands: what it is called here; empty for none.

    `value` comes along where it fits there.
    """
    own = [key for key in dict.fromkeys(row.key for row in describe()) if key.split(".")[-1] == name]
    if own and name != "name":
        return f"did you mean {' or '.join(_filled(f'{key}={{}}', value) for key in own)}?"
    if name in FOREIGN:
        return f"here that is {_filled(FOREIGN[name], value)}"
    if name not in NEEDLESS and (near := nearest(name, FOREIGN)):
        return f"did you mean {near}? here that is {_filled(FOREIGN[near], value)}"
    return f"leave it out: {NEEDLESS[name]}" if name in NEEDLESS else ""


def nearest_setting(key: str, siblings: Collection[str], value: Any = "...") -> str:
    """The hint for a misspelled `group.name`; empty where none of its siblings is near."""
    *groups, name = key.split(".")
    near = nearest(name, siblings, has_parts=True)
    if not near:
        return ""
    whole = ".".join((*groups, near))
    is_setting = any(row.key == whole for row in describe())
    return f"did you mean {_filled(f'{whole}={{}}', value) if is_setting else whole}?"


def in_item(name: str, siblings: Collection[str], value: Any = "...") -> str:
    """The hint for a name that is no setting of an item of a list, which no word can name alone."""
    hint = name_here(name, value)
    meant = re.search(r"data\.(\w+)=", hint)
    near = nearest(name, siblings, has_parts=True)
    own = near or (meant[1] if meant and meant[1] in siblings else "")
    return f"did you mean `{own}` in that item?" if own else hint


def value_here(key: str, value: Any, allowed: Collection[str]) -> str:
    """The hint for a value that is none of those allowed: what it is called here; empty for none."""
    given = _plain(value)
    if given in VALUES.get(key, {}):
        return f"here that is {VALUES[key][given]}"
    plain = {_plain(name): name for name in allowed}
    near = nearest(given, plain)
    return f"did you mean {key}={plain[near]}?" if near else ""


def _filled(words: str, value: Any) -> str:
    """Words with the value in its place; with `...` where it is none that one types, or does not fit."""
    match = re.search(r"([\w.]+)=(\w*)\{\}", words)
    if not match:
        return words
    key, before = match.groups()
    if key == "data.train" and (listed := _listed(value)):
        return words.replace(match[0], listed)
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    fits = _WORD.fullmatch(text) and _is_valid(key, before + text if before else value)
    return words.replace("{}", text) if fits else words.replace(before + "{}", "...")


def _listed(value: Any) -> str:
    """The word for several files, be they a list or text as `a.json,b.json`; empty for anything else."""
    names = value if isinstance(value, list | tuple) else split_paths(value) if isinstance(value, str) else []
    return setting_of(names) if len(names) > 1 and all(isinstance(name, str) for name in names) else ""


def _is_valid(key: str, value: Any) -> bool:
    """Whether a setting can have the value, all others being left out."""
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    if isinstance(nested.get("method"), dict):
        name = key.partition(".")[2]
        nested["method"].setdefault("name", methods_with(name)[0])
    elif "method" in nested:
        nested["method"] = {"name": value}
    try:
        Recipe.model_validate(nested)
    except ValidationError as err:  # of others, perhaps, that are missing or go with it
        return not any(key.split(".")[-1] in problem["loc"] for problem in err.errors())
    return True


def methods_with(name: str) -> list[str]:
    """The methods that have a setting of this name."""
    return [method for method, kind in METHOD_SETTINGS.items() if name in kind.model_fields]
