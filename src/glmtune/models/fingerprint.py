"""Which base is this: told in a blink from its config and a few numbers of its tensors.

Of each tensor the name, the shape and some numbers of its start and middle are hashed: of floating ones their
values in fp32, of codes (a folder that is quantised officially) the codes as they are. So the fingerprint is
the same for .safetensors, .bin and shards of them, and whatever type a model is opened in; a copy that was
stored in a wider type has it too, and one that was rounded, merged or quantised has another.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.families import identify_family
from glmtune.folder import ModelFolder
from glmtune.models.config_checks import explain_config
from glmtune.models.loaders import loader_of
from glmtune.models.shards import Stored, open_shard, scan_tensors

MOST_TENSORS = 512
"""So many tensors are looked at; of GLM-4.5's 44,000, every so-manieth."""
NUMBERS = 64
"""So many numbers of a tensor's start, and as many of its middle."""
DECIDING = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "layernorm_epsilon",
    "rms_norm_eps", "rope_ratio", "rope_parameters", "partial_rotary_factor", "position_encoding_2d",
    "num_experts_per_tok", "quantization_bit", "bos_token_id", "eos_token_id", "pad_token_id",
    "mask_token_id", "gmask_token_id",
)  # fmt: skip
"""Config keys that change what a model computes and that no tensor's shape tells."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model's folder is, short enough to be kept."""

    family: str
    revision: str
    """Of ChatGLM-6B `early`, `mid` or `late`; else empty."""
    config: Mapping[str, Any]
    """The deciding keys that the config has."""
    weights: str
    """A hash, in hexadecimal."""

    @property
    def kind(self) -> str:
        """`ChatGLM-6B late`."""
        return f"{self.family} {self.revision}".strip()

    def find_odd_key(self, recorded: Mapping[str, Any], *, but: Collection[str] = ()) -> str | None:
        """The first deciding key whose value here is not the recorded one; those in `but` may differ."""
        keys = sorted((recorded.keys() | self.config.keys()) - set(but))
        return next((key for key in keys if recorded.get(key) != self.config.get(key)), None)


def fingerprint(folder: Path | ModelFolder) -> Fingerprint:
    """The fingerprint of a model's folder. Raises CheckpointError for files that cannot be read."""
    return ModelFolder.of(folder).once(_fingerprint)


def _fingerprint(folder: ModelFolder) -> Fingerprint:
    known = identify_family(folder)
    with explain_config(folder.path / "config.json"):
        config = loader_of(folder).describe(folder).to_dict()
    deciding = {key: config[key] for key in DECIDING if config.get(key) is not None}
    stored = dict(scan_tensors(folder))
    if config.get("tie_word_embeddings"):  # a copy, which not every layout stores
        stored.pop("lm_head.weight", None)
    plain: dict[str, Any] = json.loads(json.dumps(deciding, default=str))
    return Fingerprint(known.family, known.revision, plain, _hash(stored))


def _hash(stored: Mapping[str, Stored]) -> str:
    names = sorted(name for name in stored if not name.endswith("inv_freq"))
    chosen = names[:: -(-len(names) // MOST_TENSORS)] if names else []
    samples: dict[str, bytes] = {}
    for file in sorted({stored[name].file for name in chosen}):
        shard = open_shard(file)
        for name in (name for name in chosen if stored[name].file == file):
            samples[name] = _sample(shard.read(stored[name].name))
    digest = hashlib.sha256(f"{len(names)}".encode())
    for name in chosen:
        digest.update(f"{name}{list(stored[name].shape)}".encode() + samples[name])
    return digest.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.reshape(-1)
    parts = torch.cat((flat[:NUMBERS], flat[len(flat) // 2 :][:NUMBERS]))
    return (parts.float() if parts.is_floating_point() else parts).numpy().tobytes()
