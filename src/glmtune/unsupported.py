"""GLM models and chat formats that glmtune does not support but can name in an error."""

from collections.abc import Callable, Mapping

UNSUPPORTED_MODELS = {
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm_moe_dsa": "GLM-5",
    "glm5_next": "GLM-5.3-Flash",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
}
"""Model names by the `model_type` of config.json. Source: transformers 5.23."""

_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "GLM-4.7 or a later model": lambda text: "clear_thinking" in text or "Reasoning Effort" in text,
    "GLM-Z1-Rumination": lambda text: "深度研究助手" in text,
    "GLM-Edge": lambda text: "<|user|>" in text and "[gMASK]" not in text,
}
"""Tests on the text of a chat_template, by model. Source: the texts that the published templates print;
`clear_thinking` is an option of the templates of GLM-4.7 and later."""


def name_unsupported_format(chat_template: str) -> str | None:
    """Return the unsupported model whose chat format a Jinja template writes; None if it is none of them."""
    return next((name for name, matches in _FORMATS.items() if matches(chat_template)), None)
