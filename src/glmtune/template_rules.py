"""What tells a model's chat format: rules that look into its folder's text files; None is open."""

import json
from collections.abc import Callable, Iterator

from glmtune.folder import ModelFolder
from glmtune.templates import TEMPLATES

Look = Callable[[ModelFolder], str | None]
"""Tells a folder's chat format; None where it cannot."""


def read_chat_template(folder: ModelFolder) -> str:
    """The text of the folder's Jinja chat template; empty when it has none."""
    found = folder.json("tokenizer_config.json").get("chat_template")
    if found is None and (folder.path / "chat_template.jinja").exists():
        return folder.text("chat_template.jinja")
    return found if isinstance(found, str) else json.dumps(found or "", ensure_ascii=False)


def saved_template(folder: ModelFolder) -> str | None:
    """The format that was written when the folder was saved."""
    for name in ("tokenizer_config.json", "config.json"):
        found = folder.json(name).get("template")
        if isinstance(found, str) and found in TEMPLATES:
            return found
    return None


def from_chat_template(folder: ModelFolder) -> str | None:
    """ChatGLM2 or ChatGLM3 by the words of the chat_template."""
    text = read_chat_template(folder)
    if "[Round" in text:
        return "chatglm2"
    # chatglm3-6b-32k spells its roles `<|{{ message['role'] }}|>`
    if any(words in text for words in ("<|{{", "<|user|>", "<|assistant|>")):
        return "chatglm3"
    return None


def from_tokenizer_code(folder: ModelFolder) -> str | None:
    """The same by the code of the tokenizer, which is read and never run."""
    text = folder.text("tokenization_chatglm.py")
    if "<|user|>" in text or "build_single_message" in text:
        return "chatglm3"
    return "chatglm2" if "[Round" in text else None


def from_names(folder: ModelFolder) -> str | None:
    """The same by the names in the JSON files, if they agree."""
    names = list(_recorded_names(folder))
    found: set[str] = set()
    if any("chatglm2" in name for name in names):
        found.add("chatglm2")
    if any("chatglm3" in name for name in names):
        found.add("chatglm3")
    return found.pop() if len(found) == 1 else None


def _recorded_names(folder: ModelFolder) -> Iterator[str]:
    for path in sorted(folder.path.glob("*config.json")):
        found = folder.json(path.name)
        for key in ("name_or_path", "_name_or_path"):
            if isinstance(found.get(key), str):
                yield found[key].lower()


def glm4_chat_revision(folder: ModelFolder) -> str | None:
    """GLM-4's chat format where there is a chat_template."""
    return "glm4" if read_chat_template(folder) not in ("", '""') else None


def reads(template: str, *words: str, lacks: str = "\0") -> Look:
    """Tells `template` from a chat_template with all these words and without `lacks`."""

    def look(folder: ModelFolder) -> str | None:
        text = read_chat_template(folder).replace("\\n", "\n")
        return template if all(word in text for word in words) and lacks not in text else None

    return look
