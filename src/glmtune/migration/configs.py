"""Migrate configurations of ChatGLM3 (lora.yaml, ptuning_v2.yaml, sft.yaml) and of GLM-4 to recipe drafts.

Source: github.com/THUDM/ChatGLM3 finetune_demo/finetune_hf.py and configs/, github.com/THUDM/GLM-4 finetune/.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.files import read_text
from glmtune.migration.draft import RecipeDraft
from glmtune.migration.trainer import carry_training, hold_out
from glmtune.recipe.flags import UNKNOWN, Reader
from glmtune.strict import parse_yaml
from glmtune.values import shown

LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""The linear layers of a ChatGLM block, by the last part of their names."""

Section = dict[str, Any]


def is_config(path: Path) -> bool:
    """Return True for a YAML file that looks like a configuration of finetune_hf.py."""
    return "training_args" in _read(path)


def draft_config(
    path: Path,
    model: str | None = None,
    *,
    data_folder: str | None = None,
    processes: int = 1,
    folder: Path | None = None,
) -> RecipeDraft:
    """Migrate a configuration of finetune_hf.py to a draft.

    `model`, `data_folder` and `processes` are those of the script that names the configuration, and `folder`
    is the script's. Raises ConfigError for another YAML file and for a number that is none.
    """
    values = _read(path)
    if "training_args" not in values:
        raise ConfigError(
            f"{path}: no training_args, so not a configuration of finetune_hf.py", hint="check the path"
        )
    flags = {name: _text(value) for name, value in _section(values, "training_args").items()}
    flags.pop("generation_config", None)
    draft = RecipeDraft(str(path), path.stem, folder or path.parent, flags, processes=processes)
    draft.header.append(f"Migrated from {path} (a configuration of finetune_hf.py).")
    if model is not None:
        draft.put("model", model)
    else:
        draft.open["model"] = "the configuration names no model"
    if data_folder is None:  # no script names the configuration, so the number of processes is unknown
        rows = draft.flags.get("per_device_train_batch_size", "8")
        draft.say(
            "train.batch_size",
            f"each of N processes had {rows} rows at once: multiply by N if there were several",
        )
    _put_method(draft, _section(values, "peft_config"))
    _put_rows(draft, _section(values, "data_config"), data_folder)
    _put_encoding(draft, values)
    carry_training(draft, is_full=draft.settings["method"] == "full")
    generation = _section(_section(values, "training_args"), "generation_config")
    draft.put("evaluate.batch_size", draft.number("per_device_eval_batch_size", "8"))
    for name, value in generation.items():
        if name == "max_new_tokens":
            draft.put("evaluate.max_new_tokens", draft.read(name, value, int))
        else:
            draft.lost[f"generation_config.{name} {value}"] = (
                "answers are greedy: the likeliest token each time"
            )
    draft.drop("output_dir", "runs/<model>-<recipe>, or output=...")
    for name, value in values.items():
        if name not in ("data_config", "training_args", "peft_config") and value not in (None, False):
            draft.lost[f"{name} {value}"] = UNKNOWN
    draft.carry_rest()
    return draft


def _read(path: Path) -> Section:
    # may_agree: other programs let a key stand twice
    values = parse_yaml(read_text(path, is_given=True), str(path), may_agree=True)
    return values if isinstance(values, dict) else {}


def _section(values: Mapping[str, Any], name: str) -> Section:
    section = values.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: must hold settings, got {shown(section)}", hint="indent them below it")
    return section


def _text(value: object) -> str | None:
    """Spell a YAML value as a flag's text on a command line."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _put_method(draft: RecipeDraft, peft: Section) -> None:
    kind = str(peft.get("peft_type", "")).upper()
    if kind and kind not in METHODS:
        raise ConfigError(
            f"{draft.where}: peft_config.peft_type: {kind}",
            hint=f"these can be migrated: {', '.join(METHODS)}, and none for full fine-tuning",
        )
    # each method takes out the keys that it knows
    left = {key: value for key, value in peft.items() if key not in ("peft_type", "task_type")}
    if kind:
        METHODS[kind](draft, left)
    else:
        draft.put("method", "full", "without peft_config the program trains the whole model")
    for key, value in left.items():
        if value not in (None, False, "none", [], {}):
            draft.lost[f"peft_config.{key} {value}"] = UNKNOWN


def _put_prefix(draft: RecipeDraft, peft: Section) -> None:
    method = {
        "name": "ptuning",
        "num_prefix_tokens": _take(draft, peft, "num_virtual_tokens", 128, int),
    }
    draft.put("method", method, "PREFIX_TUNING there is the model's own prefix encoder, not PEFT's")
    if peft.pop("prefix_projection", False):
        draft.lost["peft_config.prefix_projection"] = "the program does not read it: there is no projection"


def _put_lora(draft: RecipeDraft, peft: Section) -> None:
    method: Section = {
        "name": "lora",
        "r": _take(draft, peft, "r", 8, int),
        "alpha": _take(draft, peft, "lora_alpha", 8, float),
        "dropout": _take(draft, peft, "lora_dropout", 0.0, float),
    }
    for key in ("use_rslora", "use_dora"):
        if peft.pop(key, False):
            method[key] = True
    _put_low_rank(draft, method, peft)


def _put_adalora(draft: RecipeDraft, peft: Section) -> None:
    method: Section = {
        "name": "adalora",
        "init_r": _take(draft, peft, "init_r", 12, int),
        "target_r": _take(draft, peft, "target_r", 8, int),
        "alpha": _take(draft, peft, "lora_alpha", 8, float),
        "dropout": _take(draft, peft, "lora_dropout", 0.0, float),
    }
    _put_low_rank(draft, method, peft)
    if "r" in peft:  # of LoraConfig, which AdaLoraConfig inherits from
        ranks = f"init_r {method['init_r']} and target_r {method['target_r']}"
        draft.mend("method", f"r {peft.pop('r')}: PEFT's AdaLoRA ignores it and trains with {ranks}")
    draft.mend(
        "method", "the Trainer never calls update_and_allocate, so no rank is pruned there; here they are"
    )


def _take(draft: RecipeDraft, peft: Section, name: str, default: float, read: Reader) -> Any:
    return draft.read(name, peft.pop(name, default), read)


def _put_low_rank(draft: RecipeDraft, method: Section, peft: Section) -> None:
    """Set the method, adapting those of `target_modules` that a ChatGLM block has."""
    targets = peft.pop("target_modules", None) or []
    targets = [targets] if isinstance(targets, str) else targets
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise ConfigError(
            f"{draft.where}: target_modules: must be names of layers, got {shown(targets)}",
            hint="write a list like [query_key_value]",
        )
    known = [name for name in targets if name in LINEAR]
    if known and known != ["query_key_value"]:
        method["target_modules"] = known
    draft.put("method", method)
    wrong = [name for name in targets if name not in LINEAR]
    if wrong:
        adapted = ", ".join(known or ["query_key_value"])
        draft.mend("method", f"target_modules: this model has no {', '.join(wrong)}; {adapted} is adapted")


# the strings that PEFT writes as peft_type
METHODS: Mapping[str, Callable[[RecipeDraft, Section], None]] = {
    "LORA": _put_lora,
    "ADALORA": _put_adalora,
    "PREFIX_TUNING": _put_prefix,
}


def _put_rows(draft: RecipeDraft, data: Section, folder: str | None) -> None:
    for name, key in (
        ("train_file", "data.train"),
        ("val_file", "data.validation"),
        ("test_file", "data.test"),
    ):
        text = data.pop(name, None)  # relative to the script's data folder
        if text is not None:
            draft.put(key, draft.locate(str(Path(folder or "") / str(text))))
    if "data.train" not in draft.settings:
        draft.open["data.train"] = "data_config names no train_file"
    elif "data.validation" in draft.settings:
        draft.mend(
            "data.validation",
            "the program evaluates the first 50 rows, and stops if there are fewer; here at most 200, drawn",
        )
    else:
        hold_out(draft)
    for name in data:  # num_proc and the like: dealt with by carry_rest, as a flag
        draft.flags[name] = _text(data[name])


def _put_encoding(draft: RecipeDraft, values: Section) -> None:
    # keys that GLM-4's configurations have and ChatGLM3's have not
    is_glm4 = "combine" in values or "freezeV" in values
    name = "glm4" if is_glm4 else "chatglm3"
    draft.put("data.encoding", name, "rows become the ids and labels of finetune_hf.py")
    if values.pop("combine", False):
        draft.put("data.combine", True)
    for key, setting in (
        ("max_input_length", "max_source_tokens"),
        ("max_output_length", "max_target_tokens"),
    ):
        if key not in values:
            raise ConfigError(f"{draft.where}: no {key}", hint="write it into the configuration")
        draft.put(f"data.{setting}", draft.read(key, values.pop(key), int))
    draft.mend(
        "data.max_source_tokens",
        "conversations were cut after input + output + 1 tokens without a word; the run says how many",
    )
