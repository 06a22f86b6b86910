"""The `config.json` of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B, read and written with its official keys."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from transformers import PreTrainedConfig

from glmtune.errors import CheckpointError, ConfigError
from glmtune.folder import ModelFolder
from glmtune.models.chatglm_config import V1_KEYS, ChatGLM6BConfig
from glmtune.models.config_checks import (
    PUBLISHED,
    adopt_aliases,
    check_content,
    explain_config,
    refuse_quantised,
)
from glmtune.signs import GLM4_EPSILON

RopeScaling = Literal["base", "positions"]

ROPE_SCALING: dict[str, RopeScaling] = {
    "chatglm2": "positions",
    "chatglm3": "base",
    "glm4": "base",
    "glm4_base": "base",
}
"""The target of `rope_ratio`, by chat format: it multiplies the rotary base, or divides the positions."""

_SHARED_KEYS = frozenset({"num_layers", "hidden_size", "num_attention_heads"})  # with ChatGLM-6B's config
_REQUIRED_KEYS = _SHARED_KEYS | {"padded_vocab_size", "ffn_hidden_size", "kv_channels"}
_ONLY_VALUES: dict[str, Any] = {
    "add_bias_linear": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "multi_query_attention": True,
    "tie_word_embeddings": False,
}
"""Switches that every published checkpoint sets alike; the model is written for these values."""


class ChatGLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of ChatGLM2, ChatGLM3 and GLM-4, with the official class's field names and defaults.

    Unknown keys are kept and written back, and so is `_name_or_path`, which tells ChatGLM2 from ChatGLM3.
    Source: huggingface.co/THUDM/chatglm3-6b configuration_chatglm.py.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "intermediate_size": "ffn_hidden_size",
        "rms_norm_eps": "layernorm_epsilon",
        "attention_bias": "add_qkv_bias",
        "max_position_embeddings": "seq_length",
    }

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    seq_length: int = 2048
    hidden_dropout: float = 0.0
    classifier_dropout: float | None = None
    attention_dropout: float = 0.0
    layernorm_epsilon: float = 1e-5
    rmsnorm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    post_layer_norm: bool = True
    add_bias_linear: bool = False
    add_qkv_bias: bool = False
    bias_dropout_fusion: bool = True
    multi_query_attention: bool = False
    multi_query_group_num: int = 1
    apply_query_key_layer_scaling: bool = True
    attention_softmax_in_fp32: bool = True
    fp32_residual_connection: bool = False
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    rope_ratio: float = 1
    rope_scaling_by: RopeScaling | None = None
    """Not an official key: the target of `rope_ratio`. None (unknown) is allowed with a ratio of 1 alone."""
    use_cache: bool = True
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Take the keys that are no fields: transformers' names for our fields, and unknown keys."""
        if v1_keys := sorted(V1_KEYS & kwargs.keys()):
            raise CheckpointError(
                f"config.json is ChatGLM-6B's (v1): it has the keys {', '.join(v1_keys)}",
                hint="its class is ChatGLM6BConfig; from_dict and from_pretrained find that themselves",
            )
        self._official_name = str(kwargs.get("_name_or_path") or "")
        adopt_aliases(self, kwargs)
        super().__post_init__(**kwargs)
        if self.rope_ratio == 1 or self.rope_scaling_by is not None:
            return
        if isinstance(self.eos_token_id, list) or self.layernorm_epsilon == GLM4_EPSILON:
            self.rope_scaling_by = ROPE_SCALING["glm4"]
        else:  # ChatGLM2 and ChatGLM3 have the same keys: only the published name tells them apart
            named = [t for t in ("chatglm2", "chatglm3") if t in self._official_name.lower()]
            self.rope_scaling_by = ROPE_SCALING[named[0]] if len(named) == 1 else None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: object) -> Self:
        """Build the config from a `config.json`'s content; a `ChatGLM6BConfig` if the keys are that family's.

        Raises CheckpointError if the keys are no family's, ConfigError for an impossible value.
        """
        check_content(config_dict, kind=cls)
        if _is_v1(config_dict):
            return ChatGLM6BConfig.from_dict(config_dict, **kwargs)
        config: Self = super().from_dict(config_dict, **kwargs)
        return config

    @property
    def prefix_width(self) -> int:
        """Count the numbers of one prefix token: the keys and values of every layer."""
        return 2 * self.num_layers * self.multi_query_group_num * self.kv_channels

    @property
    def prefix_embedding_size(self) -> int:
        """Return the width of the prefix's embedding, the same with and without a projection.

        Source: huggingface.co/THUDM/chatglm2-6b since 2023-07-05; ChatGLM-6B's is the hidden size.
        """
        return self.prefix_width

    def set_template(self, template: str | None) -> None:
        """Set the target of `rope_ratio` by the chat format; no effect if the ratio is 1."""
        if template is None or self.rope_ratio == 1:
            return
        if template not in ROPE_SCALING:
            raise ConfigError(f"template: {template!r} is unknown", hint=f"one of {', '.join(ROPE_SCALING)}")
        self.rope_scaling_by = ROPE_SCALING[template]

    def check_supported(self) -> None:
        """Raise ConfigError, naming the key, for a setting that the model cannot follow."""
        for key, needed in _ONLY_VALUES.items():
            if getattr(self, key) != needed:
                raise ConfigError(
                    f"config.json: {key} = {getattr(self, key)!r} is not supported, only {needed!r}",
                    hint="no published ChatGLM2, ChatGLM3 or GLM-4 checkpoint sets it so",
                )
        check_content(self.to_dict())
        if self.num_attention_heads % self.multi_query_group_num:
            raise ConfigError(
                f"config.json: num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"multi_query_group_num = {self.multi_query_group_num}",
                hint=PUBLISHED,
            )
        if self.kv_channels % 4:  # half of a head is rotated, in pairs
            raise ConfigError(
                f"config.json: kv_channels must be a multiple of 4, got {self.kv_channels}", hint=PUBLISHED
            )
        if self.rope_ratio != 1 and self.rope_scaling_by is None:
            raise ConfigError(
                f"config.json: rope_ratio = {self.rope_ratio} multiplies the rotary base in ChatGLM3 and "
                "divides the positions in ChatGLM2; nothing in the folder says which of the two this is",
                hint='say it: template="chatglm2" or template="chatglm3"',
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the official keys plus the transformers names that PEFT and `generate` look up."""
        content: dict[str, Any] = super().to_dict()
        content.pop("_official_name", None)
        content |= {"num_hidden_layers": self.num_layers, "vocab_size": self.padded_vocab_size}
        return content | {"num_key_value_heads": self.multi_query_group_num, "head_dim": self.kv_channels}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content for `config.json`: official keys, which older libraries read too."""
        content: dict[str, Any] = super().to_diff_dict()
        for key in ("num_key_value_heads", "head_dim"):
            del content[key]
        if self.rope_scaling_by is None:
            content.pop("rope_scaling_by", None)
        if "dtype" in content:
            content["torch_dtype"] = content["dtype"]  # transformers before 4.56 knows this name only
        return content | ({"_name_or_path": self._official_name} if self._official_name else {})


def _is_v1(keys: Mapping[str, Any]) -> bool:
    """Return True if the keys are ChatGLM-6B's; raise CheckpointError for a mix, and for no family's."""
    stated = set(keys) | {ChatGLMConfig.attribute_map.get(key, key) for key in keys}
    v1 = sorted(V1_KEYS & set(keys))
    only_here = sorted((_REQUIRED_KEYS - _SHARED_KEYS) & set(keys))
    if v1 and only_here:
        raise CheckpointError(
            f"config.json mixes keys of ChatGLM-6B v1 ({', '.join(v1)}) with keys of ChatGLM2/3 and GLM-4 "
            f"({', '.join(only_here)})",
            hint=PUBLISHED,
        )
    if not v1 and (missing := sorted(_REQUIRED_KEYS - stated)):
        raise CheckpointError(
            f"config.json: no key {', '.join(missing)}: this is not a ChatGLM2, ChatGLM3 or GLM-4 config",
            hint=PUBLISHED,
        )
    return bool(v1)


def read_config(
    folder: Path | ModelFolder, *, template: str | None = None
) -> ChatGLMConfig | ChatGLM6BConfig:
    """Read and check a folder's `config.json`; the chat format `template` sets the target of `rope_ratio`.

    Raises CheckpointError for a missing or foreign file and for pre-quantised weights, ConfigError for a
    setting that the model cannot follow.
    """
    folder = ModelFolder.of(folder)
    path = folder.path / "config.json"
    if not folder.path.is_dir():
        raise CheckpointError(f"{folder}: no such folder", hint="give the folder that holds config.json")
    content = folder.json("config.json", is_required=True)
    if content.get("model_type") != ChatGLMConfig.model_type:
        raise CheckpointError(
            f"{path}: model_type is {content.get('model_type')!r}, not 'chatglm'",
            hint="supported are ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in the chatglm layout",
        )
    with explain_config(path):
        config = ChatGLMConfig.from_dict(deepcopy(dict(content)))
        config.set_template(template)
        config.check_supported()
    refuse_quantised(content, path)
    config.name_or_path = str(folder)
    return config


def describe_config(folder: ModelFolder) -> ChatGLMConfig | ChatGLM6BConfig:
    """Read a folder's config as its file has it, unchecked: long contexts need no chat format here."""
    return ChatGLMConfig.from_dict(deepcopy(dict(folder.json("config.json", is_required=True))))
