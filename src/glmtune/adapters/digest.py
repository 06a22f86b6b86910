"""Hashes and figures of an adapter's files for its card: any number or setting that changes shows in them."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.adapters.card import Card
from glmtune.adapters.peft_rules import ADAPTER_FILE as ADAPTER_FILE
from glmtune.adapters.peft_rules import read_adapter_config_if_there
from glmtune.files import hash_file
from glmtune.tokenizers.protocol import Tokenizer

DECIDING = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "target_modules",
    "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern", "layer_replication",
    "rank_pattern", "alpha_pattern", "init_r", "target_r", "bias", "lora_bias", "modules_to_save",
    "trainable_token_indices",
)  # fmt: skip
"""Keys of PEFT's adapter_config.json that change what the weights beside it compute.

Source: github.com/huggingface/peft, src/peft/tuners/lora/config.py and adalora/config.py.
"""
LONGEST = 200
"""Characters of a setting that are stored as they are; a longer one, AdaLoRA's rank pattern, as its hash."""


def record_digests(card: Card, folder: Path, tensors: Mapping[str, Tensor]) -> Card:
    """Return the card with norm, hash and PEFT settings of the weights in a folder."""
    return replace(
        card,
        norm=update_norm(tensors),
        weights_sha256=hash_weights(tensors),
        adapter_config=deciding_settings(folder),
    )


def hash_weights(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, types, shapes and bytes, independent of file and order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes: numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def deciding_settings(folder: Path) -> dict[str, Any]:
    """Return the `DECIDING` keys set in adapter_config.json, long values hashed; empty without the file."""
    config = read_adapter_config_if_there(folder)
    settings = {}
    for key in (key for key in DECIDING if config.get(key)):
        value = config[key]
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            value = sorted(value)  # PEFT writes sets, in any order
        text = json.dumps(value, sort_keys=True)
        is_long = len(text) > LONGEST
        settings[key] = f"sha256 {hashlib.sha256(text.encode()).hexdigest()}" if is_long else value
    return settings


def hash_tokenizer(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the SHA-256 of the file that the tokenizer's vocabulary was read from, by the file's name."""
    path = Path(tokenizer.vocab_file)
    return {path.name: hash_file(path)}


def update_norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the length of a stored update: B or E of its factors, and all weights that are no factors.

    LoRA's B and AdaLoRA's E are 0 in an untrained adapter, A is random; so 0 means that nothing was learned.
    """
    has_scales = any(".lora_E" in name for name in tensors)
    deciding = re.compile(r"\.lora_E" if has_scales else r"\.lora_(embedding_)?B")
    return norm_of([t for name, t in tensors.items() if ".lora_" not in name or deciding.search(name)])


def norm_of(tensors: list[Tensor]) -> float:
    """Return the Euclidean length of the tensors taken as one vector."""
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt()) if tensors else 0.0
