"""The `config.json` of ChatGLM-6B (v1), read and written with its official keys.

ChatGLM2 has the same `model_type`: `ChatGLMConfig.from_dict` tells the two apart by their keys.
"""

from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from glmtune.errors import CheckpointError, ConfigError
from glmtune.families import FAMILIES
from glmtune.models.config_checks import PUBLISHED, adopt_aliases, check_content
from glmtune.signs import v1_revision

V1_KEYS = frozenset({"position_encoding_2d", "inner_hidden_size", "max_sequence_length"})
"""The keys that only ChatGLM-6B's config has."""

_REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "inner_hidden_size",
    "vocab_size",
    "bos_token_id",
)
_OFFICIAL = (
    *_REQUIRED,
    "max_sequence_length",
    "position_encoding_2d",
    "layernorm_epsilon",
    "use_cache",
    "eos_token_id",
)
_IDS_BY_REVISION = {
    "early": (),
    "mid": ("pad_token_id",),
    "late": ("pad_token_id", "mask_token_id", "gmask_token_id"),
}
"""The ids that each revision's config names; the revision is recognised by them."""


class ChatGLM6BConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers has no types
    """Config of ChatGLM-6B, with the field names and defaults of the late revision's official class.

    Unknown keys are kept and written back. `from_dict` recognises the revision by its keys, and a written
    config has the keys of the same revision.
    Source: huggingface.co/THUDM/chatglm-6b configuration_chatglm.py.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "num_key_value_heads": "num_attention_heads",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "layer_norm_eps": "layernorm_epsilon",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    max_sequence_length: int = 2048
    layernorm_epsilon: float = 1e-5
    position_encoding_2d: bool = True
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    mask_token_id: int | None = 130000
    gmask_token_id: int | None = 130001
    pad_token_id: int | None = 3
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, _revision: str | None = None, **kwargs: object) -> None:
        """Take the keys that are no fields: transformers' names for our fields, and unknown keys."""
        self._revision: str = _revision or v1_revision(
            {"gmask_token_id": self.gmask_token_id, "pad_token_id": self.pad_token_id}
        )
        adopt_aliases(self, kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: object) -> Self:
        """Build the config from a `config.json`'s content.

        Raises CheckpointError if the keys are not ChatGLM-6B's, ConfigError for an impossible value.
        """
        check_content(config_dict, kind=cls)
        stated = set(config_dict) | {cls.attribute_map.get(key, key) for key in config_dict}
        if missing := sorted(set(_REQUIRED) - stated):
            raise CheckpointError(
                f"config.json: no key {', '.join(missing)}: this is not a ChatGLM-6B config", hint=PUBLISHED
            )
        # ids that the file leaves out are None, not the class's defaults: those are the late revision's
        unnamed = dict.fromkeys(_IDS_BY_REVISION["late"])
        revision = {"_revision": v1_revision(config_dict)}
        config: Self = super().from_dict(unnamed | config_dict | revision, **kwargs)
        return config

    @property
    def revision(self) -> str:
        """Return `early`, `mid` or `late`, the published revision that the model follows."""
        return self._revision

    @property
    def head_dim(self) -> int:
        """Return the size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def prefix_width(self) -> int:
        """Count the numbers of one prefix token: the keys and values of every layer."""
        return 2 * self.num_layers * self.hidden_size

    @property
    def prefix_embedding_size(self) -> int:
        """Return the width of the prefix's embedding."""
        return self.hidden_size if self.prefix_projection else self.prefix_width

    @property
    def mask_ids(self) -> tuple[int, int]:
        """Return the ids of [MASK] and [gMASK]."""
        # early and mid configs do not name them: there they lie 4 and 3 before bos
        named = (self.mask_token_id, self.gmask_token_id)
        counted = (self.bos_token_id - 4, self.bos_token_id - 3)
        mask, gmask = (c if n is None else n for n, c in zip(named, counted, strict=True))
        return mask, gmask

    def set_template(self, template: str | None) -> None:
        """Raise ConfigError for another family's chat format; ChatGLM-6B's config does not depend on it."""
        if template not in (None, *FAMILIES["ChatGLM-6B"].templates):
            raise ConfigError(f"template: {template!r} is not ChatGLM-6B's", hint="template=chatglm")

    def check_supported(self) -> None:
        """Raise ConfigError, naming the key, for a setting that the model cannot follow."""
        check_content(self.to_dict())
        if self.bos_token_id is None or self.bos_token_id >= self.vocab_size:
            raise ConfigError(
                f"config.json: bos_token_id must be an id below vocab_size = {self.vocab_size}, got "
                f"{self.bos_token_id!r}: positions are counted from it",
                hint=PUBLISHED,
            )
        rotated = 4 if self.position_encoding_2d else 2  # a head's parts, each rotated in two halves
        if self.hidden_size % (rotated * self.num_attention_heads):
            raise ConfigError(
                f"config.json: hidden_size = {self.hidden_size} is not a multiple of {rotated} times "
                f"num_attention_heads = {self.num_attention_heads}",
                hint=PUBLISHED,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the official keys plus the transformers names that PEFT and `generate` look up."""
        content: dict[str, Any] = super().to_dict()
        content.pop("_revision", None)
        for key in _IDS_BY_REVISION["late"]:
            content.pop(key, None)
        content |= {key: getattr(self, key) for key in _IDS_BY_REVISION[self._revision]}
        content |= {"num_hidden_layers": self.num_layers, "head_dim": self.head_dim}
        return content | {"num_key_value_heads": self.num_attention_heads}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the content for `config.json`: official keys, which older libraries read too."""
        content: dict[str, Any] = super().to_diff_dict()
        for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"):
            content.pop(key, None)
        # also keys at their defaults, which a diff leaves out: other libraries have other defaults
        content |= {key: getattr(self, key) for key in (*_OFFICIAL, *_IDS_BY_REVISION[self._revision])}
        if "dtype" in content:
            content["torch_dtype"] = content["dtype"]  # transformers before 4.56 knows this name only
        return content
