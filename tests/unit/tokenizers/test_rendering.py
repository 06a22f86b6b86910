"""A folder's own chat template is rendered for those who ask for it, and ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from glmtune.errors import ConfigError
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.base import name_in_template
from glmtune.tokenizers.convert import chat_template_of
from tiny import tiny_json, tiny_tiktoken

ASKED = [{"role": "user", "content": "早"}]
ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% if 'x' %}{{ 7 ** (7 ** 12) }}{% endif %}",
)
HOSTILE = {
    '{{ "a" * (10 ** 9) }}': "memory",
    '{{ "%1000000000d"|format(1) }}': "memory",
    '{{ ""|center(10 ** 10) }}': "memory",
    "{{ range(99999)|list * 99999 }}": "memory",
    "{{ lipsum(n=10 ** 7)|length }}": "not done|memory",
    '{{ "a" * (10 ** 8) }}': "writes more than 16,777,216 characters",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "memory",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% for x in [[[]]] recursive %}{{ loop([[x]]) }}{% endfor %}": "recursion",
    "{% for": "end of template",
    "{{ a.b.c }}": "undefined",
    "{{ 1 / 0 }}": "division",
    "{{ raise_exception('no') }}": "no",
}


def folder_with(template: str, folder: Path) -> Path:
    tiny_tiktoken(folder)
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "chat_template": template}), encoding="utf-8")
    return folder


def refuse(template: str, words: str, folder: Path) -> None:
    tokenizer: Any = read_tokenizer(folder_with(template, folder), "glm4")
    with pytest.raises(ConfigError, match=f"its chat_template .*({words})") as caught:
        tokenizer.apply_chat_template(ASKED, tokenize=False)
    assert "encode_messages" in caught.value.hint


@pytest.mark.parametrize("template", [text for text, words in HOSTILE.items() if "not done" not in words])
def test_a_template_that_takes_too_much_or_fails_is_told(template: str, tmp_path: Path) -> None:
    refuse(template, HOSTILE[template], tmp_path)


def test_a_template_without_end_is_given_up_and_the_next_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_json(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text(ENDLESS[1], encoding="utf-8")
    tokenizer: Any = read_tokenizer(tmp_path, "glm4_0414")
    with monkeypatch.context() as patch:
        patch.setattr("glmtune.tokenizers.rendering.MAX_SECONDS", 0.3)
        with pytest.raises(ConfigError, match="its chat_template is not done after 0"):
            tokenizer.apply_chat_template(ASKED, tokenize=False)
    first = "{{ messages[0].content }}"
    assert tokenizer.apply_chat_template(ASKED, chat_template=first, tokenize=False) == "早"


@pytest.mark.slow
@pytest.mark.parametrize("template", [*ENDLESS, "{{ lipsum(n=10 ** 7)|length }}"])
def test_a_template_without_end_is_told(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtune.tokenizers.rendering.MAX_SECONDS", 1.0)
    refuse(template, "not done after 1 s|memory", tmp_path)


def test_an_export_would_render_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its chat_template fails: no"):
        chat_template_of(read_tokenizer(folder_with("{{ raise_exception('no') }}", tmp_path), "glm4"))


MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}{% else %}<|assistant|>"
    "{% generation %}\n{{ m.content }}\n\n{% endgeneration %}{% endif %}{% endfor %}"
    "{% if more %}{{ more }}{% endif %}{% if tools %}{{ tools|tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{{ eos_token }}{% endif %}"
)
"""Each thing that transformers hands to a template, in one."""


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: its name
    """
    return city


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": True, "more": " 再见 "},
        {"tools": [weather]},
        {"continue_final_message": True, "tokenize": False},
        {"return_assistant_tokens_mask": True},
        {"return_tensors": "np", "padding": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@pytest.mark.parametrize("is_batched", [False, True])
def test_what_is_rendered_apart_is_what_transformers_renders(
    options: dict[str, Any], is_batched: bool, tmp_path: Path
) -> None:
    tiny_json(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")
    tokenizer: Any = read_tokenizer(tmp_path, "glm4_0414")
    talk = [*ASKED, {"role": "assistant", "content": "  好 ", "name": None}] * 2
    asked: Any = [talk, talk[:2]] if is_batched else talk
    options = {"padding": is_batched, **options}
    found = tokenizer.apply_chat_template(asked, chat_template=MARKED, **options)
    official = PreTrainedTokenizerBase.apply_chat_template(tokenizer, asked, chat_template=MARKED, **options)
    assert str(found) == str(official)


def test_what_the_caller_does_wrong_stays_its_own_error(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tiny_tiktoken(tmp_path))
    with pytest.raises(TypeError):
        tokenizer.apply_chat_template(ASKED, nosuch=1, tokenize=5, padding=object(), tools=1)


def test_a_long_conversation_is_rendered(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tiny_tiktoken(tmp_path))
    assert tokenizer.apply_chat_template(ASKED * 10_000, tokenize=False).count("早") == 10_000


def test_a_template_that_repeats_the_beginning_of_a_name_has_none() -> None:
    assert name_in_template("你是一个名为 " * 50_000) == ""
    assert name_in_template("x 你是一个名为 小橙 的人工智能助手 y") == "小橙"
