"""Tell a model's family and revision from the keys of its config.json."""

from collections.abc import Mapping
from typing import Any

GLM4_EPSILON = 1.5625e-07
"""`layernorm_epsilon` of every GLM-4-9B. Source: https://huggingface.co/THUDM/glm-4-9b-chat config.json."""

Config = Mapping[str, Any]
"""The content of a config.json."""

V1_SIGNS = ("position_encoding_2d", "inner_hidden_size")
"""Keys that only ChatGLM-6B's config.json has."""
ORIGINAL_GLM_SIGNS = ("block_position_encoding", "attention_scale")
"""Keys that only the original GLM's config.json has, whose model_type `glm` is also that of GLM-4-hf."""


def is_chatglm(config: Config) -> bool:
    """Return True for a ChatGLM of any generation, and for GLM-4-9B in the chatglm layout."""
    return config.get("model_type") == "chatglm"


def is_v1(config: Config) -> bool:
    """Return True for ChatGLM-6B."""
    return is_chatglm(config) and any(key in config for key in V1_SIGNS)


def v1_revision(config: Config) -> str:
    """Return ChatGLM-6B's revision, told by the ids that config.json names: `early`, `mid` or `late`.

    The revisions differ in ids, masks and tokenizer. An id of null counts as not named.
    Source: huggingface.co/THUDM/chatglm-6b, revisions up to 2023-03-28 (early), from then (mid), and from
    2023-04-06 (late).
    """
    if config.get("gmask_token_id") is not None:
        return "late"
    return "early" if config.get("pad_token_id") is None else "mid"


def is_glm4(config: Config) -> bool:
    """Return True for GLM-4-9B in the chatglm layout."""
    # one of the two is enough: a config that was edited or saved again may have lost the other
    has_signs = isinstance(config.get("eos_token_id"), list) or (
        config.get("layernorm_epsilon") == GLM4_EPSILON
    )
    return is_chatglm(config) and has_signs


def is_original_glm(config: Config) -> bool:
    """Return True for the original GLM of 2022."""
    return any(key in config for key in ORIGINAL_GLM_SIGNS)
