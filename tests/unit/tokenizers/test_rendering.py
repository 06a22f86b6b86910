"""A folder's own chat template is rendered for those who ask for it, and ends."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import ConfigError
from glmtune.tokenizers import load_tokenizer
from glmtune.tokenizers.base import name_in_template
from glmtune.tokenizers.convert import chat_template_of
from tiny import tiny_json, tiny_tiktoken

ASKED = [{"role": "user", "content": "早"}]
HOSTILE = {
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}": "not done after",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "not done after",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": "not done",
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


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_loops_or_fails_is_told(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtune.tokenizers.rendering.MAX_STEPS", 100_000)
    tokenizers: list[Any] = [load_tokenizer(folder_with(template, tmp_path / "slow"), "glm4")]
    tiny_json(tmp_path / "fast")
    (tmp_path / "fast" / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")
    (tmp_path / "fast" / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizers.append(load_tokenizer(tmp_path / "fast", "glm4_0414"))
    before = sys.gettrace()
    for tokenizer in tokenizers:
        with pytest.raises(ConfigError, match=f"its chat_template .*{HOSTILE[template]}"):
            tokenizer.apply_chat_template(ASKED, tokenize=False)
    with pytest.raises(ConfigError, match="its chat_template"):
        chat_template_of(tokenizers[0])  # an export would render it
    assert sys.gettrace() is before


def test_what_the_caller_does_wrong_stays_its_own_error(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tiktoken(tmp_path))
    with pytest.raises(TypeError):
        tokenizer.apply_chat_template(ASKED, nosuch=1, tokenize=5, padding=object(), tools=1)


def test_a_long_conversation_is_rendered(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_tiktoken(tmp_path))
    assert tokenizer.apply_chat_template(ASKED * 10_000, tokenize=False).count("早") == 10_000


def test_a_template_that_repeats_the_beginning_of_a_name_has_none() -> None:
    assert name_in_template("你是一个名为 " * 50_000) == ""
    assert name_in_template("x 你是一个名为 小橙 的人工智能助手 y") == "小橙"
