"""Allowed values of each key of an adapter_config.json, checked before PEFT acts on them.

Source: github.com/huggingface/peft v0.21.2, src/peft/tuners/lora/config.py, adalora/config.py and
tuners_utils.py (the keys matched as regular expressions, and how).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from glmtune.adapters.card import ADAPTER_FILE as ADAPTER_FILE
from glmtune.adapters.patterns import PatternError, require_bounded
from glmtune.errors import CheckpointError
from glmtune.files import read_json
from glmtune.recipe.base import MAX_COUNT, MAX_RATE, MAX_SIZE
from glmtune.rules import OBJECT, SWITCH_OR_NULL, TEXT, Rule, integer, number
from glmtune.values import shown

_MOST_NAMES = 20_000
_MOST_PATTERNS = 2_048
"""Largest number of patterns; AdaLoRA's rank pattern has a key for each adapted layer."""


def _is_names(value: object, most: int = _MOST_NAMES) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(name, str) for name in value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_NAMES and all(map(_INDEX.is_met, value))


def _pattern(words: str, is_value: Callable[[Any], bool]) -> Rule:
    return Rule(
        f"an object of name to {words}, of at most {_MOST_PATTERNS:,}",
        lambda value: (
            isinstance(value, dict) and len(value) <= _MOST_PATTERNS and all(map(is_value, value.values()))
        ),
        may_be_null=True,
    )


def _is_rank(value: object) -> bool:
    """Return True for a rank, or AdaLoRA's list that marks each triplet as kept or pruned."""
    return _RANK.is_met(value) or (
        isinstance(value, list)
        and len(value) <= MAX_SIZE
        and all(isinstance(is_kept, bool) for is_kept in value)
    )


_RANK = integer(1, MAX_SIZE)
_ALPHA = number(-MAX_RATE, MAX_RATE)  # a negative alpha subtracts the update; PEFT allows it
_INDEX = integer(0, 2_000_000)
_STEPS = integer(0, MAX_COUNT, may_be_null=True)
_MODULES = Rule("text or a list of names", lambda v: isinstance(v, str) or _is_names(v), may_be_null=True)
_NAMES = Rule(
    f"a list of at most {_MOST_PATTERNS:,} names", lambda v: _is_names(v, _MOST_PATTERNS), may_be_null=True
)

_PLAIN = re.compile(r"[\w.-]*")
"""Matches a name that PEFT reads as a regular expression, but that leaves it no choice."""
_AROUND = {
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
}
"""Regular expressions into which PEFT puts the names of these keys."""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision", "megatron_core"),
        TEXT,
    ),
    **dict.fromkeys(("r", "init_r", "target_r"), _RANK),
    "lora_alpha": _ALPHA,
    "lora_dropout": number(0, 1),
    "rank_pattern": _pattern("a rank", _is_rank),
    "alpha_pattern": _pattern("a number", _ALPHA.is_met),
    **dict.fromkeys(("target_modules", "exclude_modules"), _MODULES),
    "layers_pattern": Rule(
        f"text or {_NAMES.words}", lambda v: isinstance(v, str) or _NAMES.is_met(v), may_be_null=True
    ),
    **dict.fromkeys(("modules_to_save", "target_parameters"), _NAMES),
    "layers_to_transform": Rule(
        "a layer's number or a list of them", lambda v: _INDEX.is_met(v) or _is_numbers(v), may_be_null=True
    ),
    "trainable_token_indices": Rule(
        "a list of token ids, or an object of layer to such a list",
        lambda v: _is_numbers(v) or (isinstance(v, dict) and all(map(_is_numbers, v.values()))),
        may_be_null=True,
    ),
    "bias": Rule("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "init_lora_weights": Rule("true, false or text", lambda v: isinstance(v, bool | str), may_be_null=True),
    **dict.fromkeys(
        ("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "inference_mode", "ensure_weight_tying"),
        SWITCH_OR_NULL,
    ),
    **dict.fromkeys(
        ("auto_mapping", "eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config",
         "runtime_config"),
        OBJECT,
    ),
    **dict.fromkeys(("tinit", "tfinal", "deltaT", "total_step", "qalora_group_size"), _STEPS),
    **dict.fromkeys(("beta1", "beta2"), number(0, 1, may_be_null=True)),
    "orth_reg_weight": number(0, MAX_RATE, may_be_null=True),
}  # fmt: skip
"""Rules of the keys that loading carries out. Other keys are refused by name if set."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read and check a folder's adapter_config.json.

    Raises CheckpointError, naming the key, for a value that is not allowed, and for a regular expression that
    PEFT might match for ever.
    """
    file = folder / ADAPTER_FILE
    settings = read_json(file)
    for key, rule in RULES.items():
        if key in settings and not rule.allows(settings[key]):
            raise CheckpointError(
                f"{file}: {key} must be {rule.words}, got {shown(settings[key])}",
                hint="take the file from where the adapter was trained again",
            )
    for key, pattern in _list_patterns(settings):
        try:
            require_bounded(pattern)
        except PatternError as err:
            raise CheckpointError(
                f"{file}: {key}: {shown(pattern)}: {err}",
                hint='name the layers in a list instead: ["q_proj", "v_proj"]',
            ) from None
    return settings


def read_adapter_config_if_there(folder: Path) -> dict[str, Any]:
    """Read a folder's adapter_config.json as `read_adapter_config`; empty if there is none."""
    return read_adapter_config(folder) if (folder / ADAPTER_FILE).is_file() else {}


def _list_patterns(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each regular expression that PEFT builds from an adapter's settings, with its key."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(settings.get(key), str):
            yield key, settings[key]
    for key, around in _AROUND.items():
        names = settings.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            # a plain name needs no check: nothing that PEFT puts around it leaves a choice
            if not _PLAIN.fullmatch(name):
                yield key, around.format(name)
