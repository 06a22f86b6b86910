"""Tell a model's chat format from the text files in its folder, one rule a function."""

import json
from collections.abc import Callable

from glmtune.folder import ModelFolder
from glmtune.templates import TEMPLATES

Look = Callable[[ModelFolder], str | None]
"""A rule: returns a folder's chat format, None if the rule cannot tell."""


def read_chat_template(folder: ModelFolder) -> str:
    """Return the text of the folder's Jinja chat template; empty if it has none."""
    template = folder.json("tokenizer_config.json").get("chat_template")
    if template is None and (folder.path / "chat_template.jinja").exists():
        return folder.text("chat_template.jinja")
    # transformers also allows a list of named templates: searched as one JSON text. `or ""` gives '""'.
    return template if isinstance(template, str) else json.dumps(template or "", ensure_ascii=False)


def saved_template(folder: ModelFolder) -> str | None:
    """Return the chat format that glmtune recorded when it saved the folder."""
    for name in ("tokenizer_config.json", "config.json"):
        recorded = folder.json(name).get("template")
        if isinstance(recorded, str) and recorded in TEMPLATES:
            return recorded
    return None


def from_chat_template(folder: ModelFolder) -> str | None:
    """Tell ChatGLM2 from ChatGLM3 by the words of the chat_template."""
    text = read_chat_template(folder)
    if "[Round" in text:
        return "chatglm2"
    # chatglm3-6b-32k spells its roles `<|{{ message['role'] }}|>`
    if any(words in text for words in ("<|{{", "<|user|>", "<|assistant|>")):
        return "chatglm3"
    return None


def from_tokenizer_code(folder: ModelFolder) -> str | None:
    """Tell ChatGLM2 from ChatGLM3 by the tokenizer's Python code, which is read and never run."""
    text = folder.text("tokenization_chatglm.py")
    if "<|user|>" in text or "build_single_message" in text:
        return "chatglm3"
    return "chatglm2" if "[Round" in text else None


def from_names(folder: ModelFolder) -> str | None:
    """Tell ChatGLM2 from ChatGLM3 by the model names in the JSON files, if they agree."""
    names = [
        name.lower()
        for path in sorted(folder.path.glob("*config.json"))
        for key in ("name_or_path", "_name_or_path")
        if isinstance(name := folder.json(path.name).get(key), str)
    ]
    formats = [style for style in ("chatglm2", "chatglm3") if any(style in name for name in names)]
    return formats[0] if len(formats) == 1 else None


def glm4_chat_revision(folder: ModelFolder) -> str | None:
    """Return GLM-4's chat format if the folder has a chat_template."""
    return "glm4" if read_chat_template(folder) not in ("", '""') else None


def reads(template: str, *words: str, lacks: str = "\0") -> Look:
    """Make the rule that returns `template` for a chat_template with all `words` and without `lacks`."""

    def look(folder: ModelFolder) -> str | None:
        # a template inside JSON or inside a Jinja string has its line breaks spelled \n
        text = read_chat_template(folder).replace("\\n", "\n")
        return template if all(word in text for word in words) and lacks not in text else None

    return look
