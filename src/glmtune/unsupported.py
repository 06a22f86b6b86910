"""GLM models and chat formats that are known by name only, so as to be refused by name."""

from collections.abc import Callable, Mapping

UNSUPPORTED_MODELS = {
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm_moe_dsa": "GLM-5",
    "glm5_next": "GLM-5.3-Flash",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
}
"""Names by the model_type of config.json. Source: transformers 5.23."""

_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "GLM-4.7 or a later model": lambda text: "clear_thinking" in text or "Reasoning Effort" in text,
    "GLM-Z1-Rumination": lambda text: "深度研究助手" in text,
    "GLM-Edge": lambda text: "<|user|>" in text and "[gMASK]" not in text,
}
"""A sign of each in the text of its chat_template. Source: the texts that the published templates print;
`clear_thinking` is an option of GLM-4.7's and of later ones."""


def name_unsupported_format(chat_template: str) -> str | None:
    """The model whose chat format a Jinja template writes; None where it is not known by sight."""
    return next((name for name, is_its in _FORMATS.items() if is_its(chat_template)), None)
