"""What the keys of a config.json tell of its family and revision."""

from collections.abc import Mapping
from typing import Any

GLM4_EPSILON = 1.5625e-07
"""`layernorm_epsilon` of every GLM-4-9B. Source: https://huggingface.co/THUDM/glm-4-9b-chat config.json."""

Config = Mapping[str, Any]
"""The content of a config.json."""

V1_SIGNS = ("position_encoding_2d", "inner_hidden_size")
FIRST_GLM_SIGNS = ("block_position_encoding", "attention_scale")


def is_chatglm(config: Config) -> bool:
    """Whether it is ChatGLM's of any generation, GLM-4-9B's in that layout included."""
    return config.get("model_type") == "chatglm"


def is_v1(config: Config) -> bool:
    """Whether it is ChatGLM-6B's."""
    return is_chatglm(config) and any(key in config for key in V1_SIGNS)


def v1_revision(config: Config) -> str:
    """`early`, `mid` or `late`: the three revisions of ChatGLM-6B in circulation.

    They differ in ids, masks and tokenizer; the ids that a config names tell them, and null names none.
    Source: huggingface.co/THUDM/chatglm-6b, revisions up to 2023-03-28 (early), from then (mid), and from
    2023-04-06 (late).
    """
    if config.get("gmask_token_id") is not None:
        return "late"
    return "early" if config.get("pad_token_id") is None else "mid"


def is_glm4(config: Config) -> bool:
    """Whether it is GLM-4-9B's in the chatglm layout."""
    has_signs = isinstance(config.get("eos_token_id"), list) or (
        config.get("layernorm_epsilon") == GLM4_EPSILON
    )
    return is_chatglm(config) and has_signs


def is_first(config: Config) -> bool:
    """Whether it is the original GLM's, of 2022."""
    return any(key in config for key in FIRST_GLM_SIGNS)
