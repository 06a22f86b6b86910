"""The settings of a PEFT adapter: which this version of PEFT knows, which are a method's of ours."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, LoraConfig

from glmtune.errors import ConfigError
from glmtune.files import read_json, read_json_if_there
from glmtune.methods.card import CARD_FILE
from glmtune.methods.seal import ADAPTER_FILE, DECIDING
from glmtune.recipe import Lora

CONFIGS = {"LORA": LoraConfig, "ADALORA": AdaLoraConfig}
_OURS = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern",
    "alpha_pattern", "exclude_modules", "init_r", "target_r",
}  # fmt: skip
"""Of the settings that decide, those that an adapter to be trained on may have."""


def known_settings(peft_type: str) -> set[str]:
    """The names that an adapter_config.json of this type may hold; any other stops PEFT from loading it."""
    return {field.name for field in fields(CONFIGS[peft_type])} | {"peft_type", "auto_mapping"}


def require_ours(adapter: Path) -> None:
    """Raise `ConfigError` for an adapter of which more is trained than a method here trains."""
    theirs = read_json_if_there(adapter / ADAPTER_FILE)
    odd = next((key for key in DECIDING if _is_foreign(key, theirs.get(key))), None)
    if odd:
        raise ConfigError(
            f"{adapter / ADAPTER_FILE}: {odd} is {theirs[odd]!r}, which no method here has a setting for",
            hint="train its base anew, or go on from it with PEFT",
        )


def read_settings(adapter: Path) -> Lora:
    """The method of a LoRA without a card. Raises `ConfigError` for another kind, and as `require_ours`."""
    file = adapter / ADAPTER_FILE
    theirs = read_json(file)
    if theirs.get("peft_type") != "LORA":
        raise ConfigError(
            f"{file}: peft_type {theirs.get('peft_type')}, but no {CARD_FILE} that says how it was trained",
            hint="training goes on from LoRA, which AdaLoRA can be made: glmtune export "
            f"{adapter} --to lora-from-adalora --output FOLDER",
        )
    require_ours(adapter)
    return Lora(
        r=theirs["r"],
        alpha=theirs["lora_alpha"],
        dropout=theirs.get("lora_dropout", 0.0),
        target_modules=tuple(sorted(theirs["target_modules"])),
        use_rslora=bool(theirs.get("use_rslora")),
        use_dora=bool(theirs.get("use_dora")),
    )


def _is_foreign(key: str, value: Any) -> bool:
    if key == "target_modules" and value:  # a pattern, or some layers by their full names
        return not isinstance(value, list) or any("." in name for name in value)
    return bool(value) and value != "none" and key not in _OURS
