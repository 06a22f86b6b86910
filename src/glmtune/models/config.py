"""The `config.json` of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B, read and written with its official keys."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from transformers import PreTrainedConfig

from glmtune.errors import CheckpointError, ConfigError
from glmtune.folder import ModelFolder
from glmtune.models.chatglm_config import V1_KEYS, ChatGLM6BConfig
from glmtune.models.config_checks import PUBLISHED, check_content, explain_config, refuse_quantised
from glmtune.signs import GLM4_EPSILON

RopeScaling = Literal["base", "positions"]

ROPE_SCALING: dict[str, RopeScaling] = {
    "chatglm2": "positions",
    "chatglm3": "base",
    "glm4": "base",
    "glm4_base": "base",
}
"""What `rope_ratio` scales, by template: it multiplies the rotary base, or divides the positions."""

_V1_TOO_KEYS = frozenset({"num_layers", "hidden_size", "num_attention_heads"})
_REQUIRED_KEYS = _V1_TOO_KEYS | {"padded_vocab_size", "ffn_hidden_size", "kv_channels"}
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
    """Config of the `chatglm` layout; field names and defaults are the official class's.

    Unknown keys are kept and written back, and so is `_name_or_path`: it tells ChatGLM2 from ChatGLM3.
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
    """Ours: what `rope_ratio` scales; None while that is open (it must be known if the ratio is not 1)."""
    use_cache: bool = True
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Take the keys that are no fields: transformers' names for our fields, and what is unknown."""
        _refuse_v1(kwargs)
        self._official_name = str(kwargs.get("_name_or_path") or "")
        for alias in self.attribute_map.keys() & kwargs.keys():
            self._adopt(alias, kwargs.pop(alias))
        super().__post_init__(**kwargs)
        if self.rope_ratio != 1 and self.rope_scaling_by is None:
            self.rope_scaling_by = self._told_rope_scaling()

    def _adopt(self, alias: str, value: Any) -> None:
        official = self.attribute_map[alias]
        stated = getattr(self, official)
        if value is None or value == stated:
            return
        if alias == "vocab_size" and stated != type(self).padded_vocab_size:
            return  # the official code reads padded_vocab_size only
        if stated != getattr(type(self), official):
            raise ConfigError(
                f"config.json: {alias} = {value!r} contradicts {official} = {stated!r}",
                hint=f"two names of one setting: leave {alias} out, or {PUBLISHED}",
            )
        setattr(self, official, value)

    def _told_rope_scaling(self) -> RopeScaling | None:
        """Decide from the config alone: GLM-4 by its eos list or epsilon, else by the published name."""
        if isinstance(self.eos_token_id, list) or self.layernorm_epsilon == GLM4_EPSILON:
            return ROPE_SCALING["glm4"]
        named = [t for t in ("chatglm2", "chatglm3") if t in self._official_name.lower()]
        return ROPE_SCALING[named[0]] if len(named) == 1 else None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Config from a `config.json`'s content, ChatGLM-6B's `ChatGLM6BConfig` if it has that family's keys.

        CheckpointError if it is of no family with this `model_type`, ConfigError for a value that cannot be.
        """
        check_content(config_dict, kind=cls)
        if _is_v1(config_dict):
            return ChatGLM6BConfig.from_dict(config_dict, **kwargs)
        config: Self = super().from_dict(config_dict, **kwargs)
        return config

    @property
    def prefix_width(self) -> int:
        """Numbers that one token of a prefix stands for: every layer's keys and values."""
        return 2 * self.num_layers * self.multi_query_group_num * self.kv_channels

    @property
    def prefix_embedding_size(self) -> int:
        """Width of the prefix's embedding, with the projection too.

        Source: huggingface.co/THUDM/chatglm2-6b since 2023-07-05; ChatGLM-6B's is the hidden size.
        """
        return self.prefix_width

    def set_template(self, template: str | None) -> None:
        """Settle what `rope_ratio` scales by the chat format; without effect if the ratio is 1."""
        if template is None or self.rope_ratio == 1:
            return
        if template not in ROPE_SCALING:
            raise ConfigError(f"template: {template!r} is unknown", hint=f"one of {', '.join(ROPE_SCALING)}")
        self.rope_scaling_by = ROPE_SCALING[template]

    def check_supported(self) -> None:
        """Raise ConfigError, naming the key, for a setting that the model cannot express."""
        for key, needed in _ONLY_VALUES.items():
            if getattr(self, key) != needed:
                raise ConfigError(
                    f"config.json: {key} = {getattr(self, key)!r} is not supported, only {needed!r}",
                    hint="no published ChatGLM2, ChatGLM3 or GLM-4 checkpoint sets it so",
                )
        self._check_sizes()
        if self.rope_ratio != 1 and self.rope_scaling_by is None:
            raise ConfigError(
                f"config.json: rope_ratio = {self.rope_ratio} multiplies the rotary base in ChatGLM3 and "
                "divides the positions in ChatGLM2; nothing in the folder says which of the two this is",
                hint='say it: template="chatglm2" or template="chatglm3"',
            )

    def _check_sizes(self) -> None:
        check_content(self.to_dict())
        if self.num_attention_heads % self.multi_query_group_num:
            raise ConfigError(
                f"config.json: num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"multi_query_group_num = {self.multi_query_group_num}",
                hint=PUBLISHED,
            )
        if self.kv_channels % 4:
            raise ConfigError(
                f"config.json: kv_channels must be a multiple of 4, got {self.kv_channels}", hint=PUBLISHED
            )

    def to_dict(self) -> dict[str, Any]:
        """Official keys plus the transformers names that PEFT and `generate` look up."""
        content: dict[str, Any] = super().to_dict()
        content.pop("_official_name", None)
        content |= {"num_hidden_layers": self.num_layers, "vocab_size": self.padded_vocab_size}
        return content | {"num_key_value_heads": self.multi_query_group_num, "head_dim": self.kv_channels}

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` gets: the official keys, readable by the official code and older libraries."""
        content: dict[str, Any] = super().to_diff_dict()
        for key in ("num_key_value_heads", "head_dim"):
            del content[key]
        if self.rope_scaling_by is None:
            content.pop("rope_scaling_by", None)
        if "dtype" in content:
            content["torch_dtype"] = content["dtype"]  # transformers before 4.56 knows this name only
        return content | ({"_name_or_path": self._official_name} if self._official_name else {})


def _refuse_v1(keys: Mapping[str, Any]) -> None:
    if found := sorted(V1_KEYS & keys.keys()):
        raise CheckpointError(
            f"config.json is ChatGLM-6B's (v1): it has the keys {', '.join(found)}",
            hint="its class is ChatGLM6BConfig; from_dict and from_pretrained find that themselves",
        )


def _is_v1(keys: Mapping[str, Any]) -> bool:
    """Whether the keys are ChatGLM-6B's; CheckpointError for a mix, and for neither family's."""
    stated = set(keys) | {ChatGLMConfig.attribute_map.get(key, key) for key in keys}
    v1 = sorted(V1_KEYS & set(keys))
    own_only = sorted((_REQUIRED_KEYS - _V1_TOO_KEYS) & set(keys))
    if v1 and own_only:
        raise CheckpointError(
            f"config.json mixes keys of ChatGLM-6B v1 ({', '.join(v1)}) with keys of ChatGLM2/3 and GLM-4 "
            f"({', '.join(own_only)})",
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
    """The folder's `config.json`, checked; `template` settles what `rope_ratio` scales."""
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
    """As `read_config`, but needs no chat format to read a config of long contexts."""
    return ChatGLMConfig.from_dict(deepcopy(dict(folder.json("config.json", is_required=True))))
