"""Fingerprints that identify a base model by its config and a few numbers of its tensors, within a second.

Each tensor's name, shape and some numbers from its start and middle are hashed: floating ones as fp32 values,
codes (of an officially quantised folder) as they are. The fingerprint is the same for .safetensors, .bin and
shards of them, for every dtype that the model is loaded in, and for a copy stored in a wider dtype; a
rounded, merged or quantised copy has another.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glmtune.families import identify_family
from glmtune.folder import ModelFolder
from glmtune.models.config_checks import explain_config
from glmtune.models.loaders import loader_of
from glmtune.models.shards import Stored, open_shard, scan_tensors

MOST_TENSORS = 512
"""The most tensors that are sampled; of GLM-4.5's 44,000, about every 86th."""
NUMBERS = 64
"""Numbers sampled from a tensor's start, and as many from its middle."""
DECIDING = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "layernorm_epsilon",
    "rms_norm_eps", "rope_ratio", "rope_parameters", "partial_rotary_factor", "position_encoding_2d",
    "num_experts_per_tok", "quantization_bit", "bos_token_id", "eos_token_id", "pad_token_id",
    "mask_token_id", "gmask_token_id",
)  # fmt: skip
"""Config keys that change the logits of a model without changing the shape of a tensor."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The identity of a model's folder, short enough for a run's or adapter's record."""

    family: str
    revision: str
    """`early`, `mid` or `late` for ChatGLM-6B; else empty."""
    config: Mapping[str, Any]
    """The keys of `DECIDING` that the config sets, and their values."""
    weights: str
    """A SHA-256 of sampled weights, in hexadecimal."""

    @property
    def kind(self) -> str:
        """Return the family with its revision, `ChatGLM-6B late`."""
        return f"{self.family} {self.revision}".strip()

    def find_odd_key(self, recorded: Mapping[str, Any], *, but: Collection[str] = ()) -> str | None:
        """Return the first config key, not in `but`, whose value differs from the recorded one."""
        keys = sorted((recorded.keys() | self.config.keys()) - set(but))
        return next((key for key in keys if recorded.get(key) != self.config.get(key)), None)


def fingerprint(folder: Path | ModelFolder) -> Fingerprint:
    """Compute the fingerprint of a model's folder, once. Raises CheckpointError for unreadable files."""
    return ModelFolder.of(folder).once(_fingerprint)


def _fingerprint(folder: ModelFolder) -> Fingerprint:
    known = identify_family(folder)
    with explain_config(folder.path / "config.json"):
        config = loader_of(folder).describe(folder).to_dict()
    deciding = {key: config[key] for key in DECIDING if config.get(key) is not None}
    stored = dict(scan_tensors(folder))
    if config.get("tie_word_embeddings"):  # a copy, which not every layout stores
        stored.pop("lm_head.weight", None)
    plain: dict[str, Any] = json.loads(json.dumps(deciding, default=str))  # as a record will give it back
    return Fingerprint(known.family, known.revision, plain, _hash_samples(stored))


def _hash_samples(stored: Mapping[str, Stored]) -> str:
    """Hash every tensor's name and shape, and numbers from its start and middle; `MOST_TENSORS` at most."""
    names = sorted(name for name in stored if not name.endswith("inv_freq"))  # not every layout stores it
    chosen = names[:: -(-len(names) // MOST_TENSORS)] if names else []
    samples: dict[str, bytes] = {}
    for file in sorted({stored[name].file for name in chosen}):  # each file is opened once
        shard = open_shard(file)
        for name in (name for name in chosen if stored[name].file == file):
            flat = shard.read(stored[name].name).reshape(-1)
            sample = torch.cat((flat[:NUMBERS], flat[len(flat) // 2 :][:NUMBERS]))
            # fp32 holds fp16 and bf16 exactly, so a wider copy of the folder gives the same bytes
            samples[name] = (sample.float() if sample.is_floating_point() else sample).numpy().tobytes()
    digest = hashlib.sha256(f"{len(names)}".encode())
    for name in chosen:
        digest.update(f"{name}{list(stored[name].shape)}".encode() + samples[name])
    return digest.hexdigest()
