"""lora.yaml, ptuning_v2.yaml and sft.yaml of ChatGLM3, and GLM-4's of the same form -> drafts.

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
    """Whether a YAML file looks like one of these."""
    return "training_args" in _read(path)


def draft_config(
    path: Path,
    model: str | None = None,
    *,
    data_folder: str | None = None,
    processes: int = 1,
    folder: Path | None = None,
) -> RecipeDraft:
    """The draft of a configuration; `folder` is where the program was started, as its script says.

    Raises ConfigError if it is none, or has a number that is none.
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
    _put_model(draft, model, is_alone=data_folder is None)
    _put_method(draft, _section(values, "peft_config"))
    _put_rows(draft, _section(values, "data_config"), data_folder)
    _put_encoding(draft, values)
    carry_training(draft, is_full=draft.settings["method"] == "full")
    _put_answers(draft, _section(_section(values, "training_args"), "generation_config"))
    draft.drop("output_dir", "runs/<model>-<recipe>, or output=...")
    _name_rest(draft, values)
    draft.carry_rest()
    return draft


def _read(path: Path) -> Section:
    values = parse_yaml(read_text(path, is_given=True), str(path), may_agree=True)
    return values if isinstance(values, dict) else {}


def _section(values: Mapping[str, Any], name: str) -> Section:
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: must hold settings, got {shown(found)}", hint="indent them below it")
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _put_model(draft: RecipeDraft, model: str | None, *, is_alone: bool) -> None:
    if model is not None:
        draft.put("model", model)
    else:
        draft.open["model"] = "the configuration names no model"
    if is_alone:
        rows = draft.flags.get("per_device_train_batch_size", "8")
        draft.say(
            "train.batch_size",
            f"each of N processes had {rows} rows at once: multiply by N if there were several",
        )


def _put_method(draft: RecipeDraft, peft: Section) -> None:
    kind = str(peft.get("peft_type", "")).upper()
    if kind not in METHODS:
        raise ConfigError(
            f"{draft.where}: peft_config.peft_type: {kind}",
            hint=f"these can be migrated: {', '.join(filter(None, METHODS))}, and none for full fine-tuning",
        )
    left = {key: value for key, value in peft.items() if key not in ("peft_type", "task_type")}
    METHODS[kind](draft, left)
    for key, value in left.items():
        if value not in (None, False, "none", [], {}):
            draft.lost[f"peft_config.{key} {value}"] = UNKNOWN


def _put_full(draft: RecipeDraft, _: Section) -> None:
    draft.put("method", "full", "without peft_config the program trains the whole model")


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
    if "r" in peft:
        ranks = f"init_r {method['init_r']} and target_r {method['target_r']}"
        draft.mend("method", f"r {peft.pop('r')}: PEFT's AdaLoRA ignores it and trains with {ranks}")
    draft.mend(
        "method", "the Trainer never calls update_and_allocate, so no rank is pruned there; here they are"
    )


def _take(draft: RecipeDraft, peft: Section, name: str, default: float, read: Reader) -> Any:
    return draft.read(name, peft.pop(name, default), read)


def _put_low_rank(draft: RecipeDraft, method: Section, peft: Section) -> None:
    named = peft.pop("target_modules", None) or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f"{draft.where}: target_modules: must be names of layers, got {shown(named)}",
            hint="write a list like [query_key_value]",
        )
    known = [name for name in named if name in LINEAR]
    if known and known != ["query_key_value"]:
        method["target_modules"] = known
    draft.put("method", method)
    wrong = [name for name in named if name not in LINEAR]
    if wrong:
        targets = ", ".join(known or ["query_key_value"])
        draft.mend("method", f"target_modules: this model has no {', '.join(wrong)}; {targets} is adapted")


METHODS: Mapping[str, Callable[[RecipeDraft, Section], None]] = {
    "": _put_full,
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
        text = data.pop(name, None)
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
    for name in data:
        draft.flags[name] = _text(data[name])


def _put_encoding(draft: RecipeDraft, values: Section) -> None:
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


def _put_answers(draft: RecipeDraft, generation: Section) -> None:
    draft.put("evaluate.batch_size", draft.number("per_device_eval_batch_size", "8"))
    if "max_new_tokens" in generation:
        draft.put("evaluate.max_new_tokens", draft.read("max_new_tokens", generation["max_new_tokens"], int))
    for name, value in generation.items():
        if name != "max_new_tokens":
            draft.lost[f"generation_config.{name} {value}"] = (
                "answers are greedy: the likeliest token each time"
            )


def _name_rest(draft: RecipeDraft, values: Section) -> None:
    for name, value in values.items():
        if name not in ("data_config", "training_args", "peft_config") and value not in (None, False):
            draft.lost[f"{name} {value}"] = UNKNOWN
