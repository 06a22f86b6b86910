"""Settings of PEFT adapters: those that loading carries out, and the reasons why the others are refused.

Source: github.com/huggingface/peft v0.21.2, src/peft/tuners/lora/config.py and adalora/config.py.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from glmtune.adapters.card import CARD_FILE
from glmtune.adapters.digest import ADAPTER_FILE, DECIDING
from glmtune.adapters.own_weights import ITS_BASE
from glmtune.adapters.peft_rules import read_adapter_config, read_adapter_config_if_there
from glmtune.errors import CheckpointError, ConfigError, first_line
from glmtune.files import COPY_AGAIN
from glmtune.recipe.method import Method
from glmtune.recipe.parse import read_method

KINDS = ("LORA", "ADALORA")
"""PEFT's types of adapters that this version loads."""

SUPPORTED = {
    "peft_type", "auto_mapping", "task_type", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias",
    "lora_bias", "use_rslora", "use_dora", "modules_to_save", "trainable_token_indices",
    "ensure_weight_tying",
    # AdaLoRA's
    "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
    # about the start of training or its gradients: they do not change what the weights compute
    "init_lora_weights", "eva_config", "corda_config", "loftq_config", "lora_ga_config", "velora_config",
    "runtime_config", "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Keys of an adapter_config.json that loading carries out; for `init_lora_weights` see `_CHANGES_BASE`."""

REFUSED = {
    "alora_invocation_tokens": "aLoRA is at work only behind certain tokens",
    "layer_replication": "it makes a deeper model of the base's layers",
    "megatron_config": "it is for Megatron's layers, which no base here has",
    "monteclora_config": "MonteCLoRA draws its weights at random",
    "use_bdlora": "BD-LoRA's factors are made of blocks",
    "use_qalora": "QA-LoRA goes on GPTQ's layers, which no base here has",
    "arrow_config": "Arrow mixes several adapters token by token",
    "kasa_config": "KaSA takes away a part of the base's weights",
}
"""Keys that must be empty, and the reasons."""

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of the values of `init_lora_weights` that subtract something from the base's own weights."""
_USUAL_RANK = 1_024
_DOWN = re.compile(r"\blora_(embedding_)?A\b")
"""Matches the names of factors whose number of rows is the rank."""
_EMPTY: tuple[Any, ...] = (None, False, 0, "", [], {})


def require_supported(folder: Path, settings: Mapping[str, Any], *, are_unknown_kept: bool = False) -> None:
    """Raise `CheckpointError`, naming the key, unless loading carries out all settings of an adapter.

    `are_unknown_kept` allows keys that this version of PEFT does not know.
    """
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights")
    if kind not in KINDS:
        raise _refusal(folder, f"peft_type is {kind!r}", f"adapters of these types work: {', '.join(KINDS)}")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _refusal(folder, f"init_lora_weights is {start!r}: {_HALF}", _MAKE_PLAIN)
    for key, why in REFUSED.items():
        if settings.get(key) not in _EMPTY:
            raise _refusal(folder, f"{key} is set: {why}, which is not supported", _ELSEWHERE)
    unknown = find_unknown(settings)
    if unknown and not are_unknown_kept:
        without = (
            "make an adapter without it, and see what that answers: "
            f"`glmtune migrate {shlex.quote(str(folder))} --output NEW`"
        )
        raise _refusal(folder, f"{unknown[0]} is set, which this version of PEFT does not know", without)


def require_ranks(folder: Path, settings: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` for a rank far above those of the stored tensors.

    PEFT allocates the settings' ranks before it looks at the tensors: a wrong number could take all memory.
    """
    pattern = (settings.get("rank_pattern") or {}).items()
    stored_ranks = [shape[0] for name, shape in stored.items() if shape and _DOWN.search(name)]
    # AdaLoRA's lists mark the triplets kept of the first rank; the tensors of pruned ones are in no file
    stored_ranks += [len(is_kept) for _, is_kept in pattern if isinstance(is_kept, list)]
    largest = max(stored_ranks, default=0)
    ranks = {key: settings[key] for key in ("r", "init_r") if key in settings}
    ranks |= {f"rank_pattern: {name}": rank for name, rank in pattern if isinstance(rank, int)}
    for key, rank in ranks.items():
        if rank > max(_USUAL_RANK, 16 * largest):
            problem = f"{key} is {rank:,}, but the tensors have ranks of at most {largest:,}"
            raise _refusal(folder, problem, COPY_AGAIN)


@contextmanager
def explain_peft(folder: Path) -> Iterator[None]:
    """Turn the errors that PEFT raises over an adapter into a CheckpointError that names its folder."""
    try:
        yield
    except RuntimeError as err:
        *_, last = str(err).strip().splitlines() or [type(err).__name__]
        raise CheckpointError(f"{folder}: does not fit this model: {last.strip()}", hint=ITS_BASE) from err
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as err:
        raise CheckpointError(
            f"{folder}: cannot be put on this model: {first_line(err)}", hint=ITS_BASE
        ) from err
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{folder}: cannot be read: {err}", hint=COPY_AGAIN) from err


def find_unknown(settings: Mapping[str, Any], *, are_empty_too: bool = False) -> list[str]:
    """Return the set keys that this version of PEFT does not know; with `are_empty_too` also empty ones."""
    unknown = sorted(settings.keys() - SUPPORTED - REFUSED.keys())
    return [key for key in unknown if are_empty_too or settings[key] not in _EMPTY]


def _refusal(folder: Path, problem: str, hint: str) -> CheckpointError:
    return CheckpointError(f"{folder / ADAPTER_FILE}: {problem}", hint=hint)


_HALF = "a part of the base's own weights was taken out when training began, and this adapter lacks it"
_MAKE_PLAIN = (
    "make plain LoRA of it with PEFT where it was trained: model.save_pretrained(NEW, "
    "path_initial_model_for_weight_conversion=INITIAL), where INITIAL was saved before the first step"
)
_ELSEWHERE = "use it with the program that trained it, or train LoRA anew"


# Settings of an adapter to be trained further

_OURS = {
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "rank_pattern",
    "alpha_pattern", "exclude_modules", "init_r", "target_r",
}  # fmt: skip
"""The `DECIDING` settings that an adapter to be trained further may have: the methods here have them too."""


def require_ours(adapter: Path) -> None:
    """Raise `ConfigError` for an adapter with a setting that no method here can train further."""
    config = read_adapter_config_if_there(adapter)
    for key in DECIDING:
        value = config.get(key)
        is_foreign = bool(value) and value != "none" and key not in _OURS
        if key == "target_modules" and value:  # a pattern, or some layers by their full names
            is_foreign = not isinstance(value, list) or any("." in name for name in value)
        if is_foreign:
            raise ConfigError(
                f"{adapter / ADAPTER_FILE}: {key} is {value!r}, which no method here has a setting for",
                hint=f"train its base, model={config.get('base_model_name_or_path') or 'BASE'} method=lora, "
                "or go on from it with PEFT",
            )


def read_settings(adapter: Path) -> Method:
    """Return the method settings of a LoRA adapter without a card.

    Raises `ConfigError` for another type of adapter, and as `require_ours`.
    """
    file = adapter / ADAPTER_FILE
    config = read_adapter_config(adapter)
    if config.get("peft_type") != "LORA":
        raise ConfigError(
            f"{file}: peft_type {config.get('peft_type')}, but no {CARD_FILE} that says how it was trained",
            hint="training goes on from LoRA, which AdaLoRA can be made: `glmtune export "
            f"{shlex.quote(str(adapter))} --to lora-from-adalora --output FOLDER`",
        )
    require_ours(adapter)
    method = {
        "name": "lora",
        "r": config.get("r", 8),  # PEFT's defaults, for keys that a file leaves out
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "target_modules": sorted(config.get("target_modules") or []),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }
    return read_method(method)
