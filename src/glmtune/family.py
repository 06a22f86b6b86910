"""Which model family a folder holds, and which chat format it speaks, told from its text files alone.

ChatGLM2 and ChatGLM3 folders have the same config keys and the same tensor names, so the chat format is
looked for elsewhere. Nothing in the folder is ever run, and its own path is never looked at.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import read_json_if_there, read_text
from glmtune.recipe.settings import TemplateName

GLM4_EPSILON = 1.5625e-07
"""`layernorm_epsilon` of every GLM-4-9B. Source: https://huggingface.co/THUDM/glm-4-9b-chat config.json."""

FAMILIES: Mapping[str, tuple[TemplateName, ...]] = {
    "ChatGLM2/ChatGLM3": ("chatglm2", "chatglm3"),
    "GLM-4": ("glm4", "glm4_base"),
}
"""The chat formats of each family; a format of one cannot be used with a folder of the other."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a folder is: its chat format (None while open) and the rule that decided."""

    template: TemplateName | None
    rule: str
    family: str = "ChatGLM2/ChatGLM3"


def identify(folder: Path, template: str | None = None) -> Identity:
    """The identity of a model's or tokenizer's folder; `template` is the user's word and comes first.

    Raises CheckpointError for a folder of no known family, ConfigError for a `template` of another family.
    """
    family = _family(folder)
    if template is not None:
        return Identity(_checked(folder, template, family), "the template setting", family)
    for rule, look in _RULES[family]:
        found = look(folder)
        if found is not None:
            return Identity(found, rule, family)
    return Identity(None, "nothing in the folder tells ChatGLM2 from ChatGLM3", family)


def require_template(template: TemplateName | None, place: str) -> TemplateName:
    """`template`, or a ConfigError that asks for it where it is still open."""
    if template is not None:
        return template
    raise ConfigError(
        f"{place}: cannot tell which chat format this model speaks, ChatGLM2's or ChatGLM3's",
        hint="say it: template=chatglm2 or template=chatglm3",
    )


def read_chat_template(folder: Path) -> str:
    """The text of the folder's Jinja chat template; empty when it has none."""
    found = read_json_if_there(folder / "tokenizer_config.json").get("chat_template")
    if found is None and (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    return found if isinstance(found, str) else json.dumps(found or "", ensure_ascii=False)


def _family(folder: Path) -> str:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder", hint="give the folder that holds config.json and tokenizer.model"
        )
    config = read_json_if_there(folder / "config.json")
    if config:
        return _family_of_config(folder, config)
    tokenizer_class = read_json_if_there(folder / "tokenizer_config.json").get("tokenizer_class")
    for family, known in (("GLM-4", "ChatGLM4Tokenizer"), ("ChatGLM2/ChatGLM3", "ChatGLMTokenizer")):
        if tokenizer_class == known:
            return family
    raise CheckpointError(
        f"{folder}: neither a config.json nor a tokenizer_config.json of a GLM model",
        hint="give the folder of a ChatGLM2, ChatGLM3 or GLM-4 model",
    )


def _family_of_config(folder: Path, config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        raise _unsupported(folder, "a ChatGLM-6B (first version) model")
    if "block_position_encoding" in config or "attention_scale" in config:
        raise _unsupported(folder, "an original GLM model")
    if model_type in ("glm", "glm4"):
        raise _unsupported(folder, f"a model in the transformers layout of {model_type!r}")
    if model_type != "chatglm":
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {model_type!r}, expected 'chatglm'",
            hint="give the folder of a ChatGLM2, ChatGLM3 or GLM-4 model",
        )
    is_glm4 = isinstance(config.get("eos_token_id"), list) or config.get("layernorm_epsilon") == GLM4_EPSILON
    return "GLM-4" if is_glm4 else "ChatGLM2/ChatGLM3"


def _unsupported(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / 'config.json'}: {what}: not supported yet",
        hint="ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B in the chatglm layout are",
    )


def _checked(folder: Path, template: str, family: str) -> TemplateName:
    for allowed in FAMILIES[family]:
        if template == allowed:
            return allowed
    raise ConfigError(
        f"template: {template!r} is not a chat format of {folder}, which holds a {family} model",
        hint="choose one of " + ", ".join(FAMILIES[family]),
    )


def _saved_template(folder: Path) -> TemplateName | None:
    for name in ("tokenizer_config.json", "config.json"):
        found = read_json_if_there(folder / name).get("template")
        for template in (name for names in FAMILIES.values() for name in names):
            if found == template:
                return template
    return None


def _from_chat_template(folder: Path) -> TemplateName | None:
    text = read_chat_template(folder)
    if "[Round" in text:
        return "chatglm2"
    # chatglm3-6b-32k spells its roles `<|{{ message['role'] }}|>`
    if any(words in text for words in ("<|{{", "<|user|>", "<|assistant|>")):
        return "chatglm3"
    return None


def _from_tokenizer_code(folder: Path) -> TemplateName | None:
    path = folder / "tokenization_chatglm.py"
    text = read_text(path) if path.is_file() else ""
    if "<|user|>" in text or "build_single_message" in text:
        return "chatglm3"
    return "chatglm2" if "[Round" in text else None


def _from_names(folder: Path) -> TemplateName | None:
    names = list(_recorded_names(folder))
    found: set[TemplateName] = set()
    if any("chatglm2" in name for name in names):
        found.add("chatglm2")
    if any("chatglm3" in name for name in names):
        found.add("chatglm3")
    return found.pop() if len(found) == 1 else None


def _recorded_names(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*config.json")):
        found = read_json_if_there(path)
        for key in ("name_or_path", "_name_or_path"):
            if isinstance(found.get(key), str):
                yield found[key].lower()


def _glm4_chat_revision(folder: Path) -> TemplateName | None:
    return "glm4" if read_chat_template(folder) not in ("", '""') else None


_Rule = tuple[str, Callable[[Path], TemplateName | None]]

_RULES: Mapping[str, tuple[_Rule, ...]] = {
    "ChatGLM2/ChatGLM3": (
        ("its chat_template", _from_chat_template),
        ("its tokenization_chatglm.py", _from_tokenizer_code),
        ("the name_or_path in its JSON files", _from_names),
        ("the template written when it was saved", _saved_template),
    ),
    "GLM-4": (
        ("its eos ids and its chat_template", _glm4_chat_revision),
        ("the template written when it was saved", _saved_template),
        ("its eos ids and no chat_template", lambda _: "glm4_base"),
    ),
}
