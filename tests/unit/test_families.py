"""Which family and chat format a folder is."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from glmtune.errors import CheckpointError, ConfigError
from glmtune.families import identify, require_template
from glmtune.models import ChatGLM6BConfig
from glmtune.signs import GLM4_EPSILON

CHATGLM = {"model_type": "chatglm", "eos_token_id": 2, "layernorm_epsilon": 1e-5}
GLM4 = {"model_type": "chatglm", "eos_token_id": [5, 6, 7], "layernorm_epsilon": GLM4_EPSILON}


def folder(path: Path, config: dict[str, Any] | None = None, **files: str | dict[str, Any]) -> Path:
    """A folder with a config and other files; `__` in a name stands for the dot."""
    if config is not None:
        files["config__json"] = config
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def test_a_folder_that_tells_nothing_is_open(tmp_path):
    assert identify(folder(tmp_path, CHATGLM)).template is None


def test_the_folders_own_path_is_never_looked_at(tmp_path):
    path = tmp_path / "chatglm3-6b"
    path.mkdir()
    assert identify(folder(path, CHATGLM)).template is None


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config__json": {"chat_template": "<|{{ message['role'] }}|>\n"}}, "chatglm3"),
        ({"tokenizer_config__json": {"chat_template": "[Round {{ n }}]"}}, "chatglm2"),
        ({"chat_template__jinja": "<|user|>"}, "chatglm3"),
        ({"tokenization_chatglm__py": "def build_single_message(): ..."}, "chatglm3"),
        ({"tokenization_chatglm__py": "TOKENS = ['<|user|>']"}, "chatglm3"),
        ({"tokenization_chatglm__py": "prompt = '[Round {}]'"}, "chatglm2"),
        ({"tokenizer_config__json": {"name_or_path": "THUDM/chatglm2-6b-32k"}}, "chatglm2"),
        ({"tokenizer_config__json": {"name_or_path": "ZhipuAI/chatglm3-6b-base"}}, "chatglm3"),
        ({"tokenizer_config__json": {"template": "chatglm2"}}, "chatglm2"),
    ],
)
def test_the_format_is_told_by_the_folders_files(tmp_path, files, template):
    assert identify(folder(tmp_path, CHATGLM, **files)).template == template


def test_the_rules_go_in_order(tmp_path):
    path = folder(
        tmp_path,
        {**CHATGLM, "_name_or_path": "THUDM/chatglm2-6b"},
        tokenization_chatglm__py="<|user|>",
        tokenizer_config__json={"chat_template": "[Round 1]"},
    )
    assert identify(path, "chatglm3").template == "chatglm3"
    assert identify(path).template == "chatglm2"
    (path / "tokenizer_config.json").write_text("{}")
    assert identify(path).template == "chatglm3"
    (path / "tokenization_chatglm.py").unlink()
    assert identify(path).rule == "the name_or_path in its JSON files"


def test_a_chat_template_that_says_nothing_leaves_the_question_to_the_next_rule(tmp_path):
    path = folder(
        tmp_path,
        CHATGLM,
        tokenizer_config__json={"chat_template": "{{ messages }}", "name_or_path": "chatglm3-6b"},
    )
    assert identify(path).template == "chatglm3"


def test_names_that_disagree_tell_nothing(tmp_path):
    config = {**CHATGLM, "_name_or_path": "chatglm2-6b"}
    path = folder(tmp_path, config, tokenizer_config__json={"name_or_path": "chatglm3-6b"})
    assert identify(path).template is None


def test_the_tokenizers_code_is_read_and_never_run(tmp_path):
    path = folder(tmp_path, CHATGLM, tokenization_chatglm__py="raise SystemExit('<|user|>')")
    assert identify(path).template == "chatglm3"


@pytest.mark.parametrize(
    "config", [GLM4, {**GLM4, "eos_token_id": 5}, {**GLM4, "layernorm_epsilon": 0.00000015625}]
)
def test_glm4_is_told_by_its_eos_ids_or_its_epsilon(tmp_path, config):
    path = folder(tmp_path, config)
    assert identify(path).template == "glm4_base"
    folder(tmp_path, tokenizer_config__json={"chat_template": "[gMASK]<sop>"})
    assert identify(path).template == "glm4"


@pytest.mark.parametrize(("config", "template"), [(CHATGLM, "glm4"), (GLM4, "chatglm3")])
def test_a_format_of_another_family_is_refused(tmp_path, config, template):
    path = folder(tmp_path, config)
    with pytest.raises(ConfigError, match="not a chat format of") as caught:
        identify(path, template)
    own = identify(path).template
    offered = re.findall(r"template=(\w+)", caught.value.hint)
    assert caught.value.hint.endswith(f" tells {own}") if own else offered
    for name in offered:
        assert identify(path, name).template == name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "glm", "block_position_encoding": True}, "original GLM"),
        ({"model_type": "llama"}, "'llama'"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, config, words):
    with pytest.raises(CheckpointError, match=words):
        identify(folder(tmp_path, config))


NEITHER = "it names neither pad_token_id nor gmask_token_id"
PAD_ALONE = "it names pad_token_id but no gmask_token_id"


@pytest.mark.parametrize(
    ("keys", "revision", "rule"),
    [
        ({}, "early", "it names neither pad_token_id nor gmask_token_id"),
        (
            {"pad_token_id": None, "gmask_token_id": None},
            "early",
            "it names neither pad_token_id nor gmask_token_id",
        ),
        ({"pad_token_id": 3}, "mid", "it names pad_token_id but no gmask_token_id"),
        ({"pad_token_id": 3, "gmask_token_id": None}, "mid", "it names pad_token_id but no gmask_token_id"),
        ({"pad_token_id": 3, "gmask_token_id": 301}, "late", "it names gmask_token_id"),
    ],
)
def test_the_revisions_of_chatglm_6b_are_told_by_the_ids_that_the_config_names(
    tmp_path, keys, revision, rule
):
    ids = {"pad_token_id": None, "gmask_token_id": None, **keys}
    assert ChatGLM6BConfig(**ids).revision == revision
    assert ChatGLM6BConfig.from_dict({**ChatGLM6BConfig().to_diff_dict(), **ids}).revision == revision
    found = identify(folder(tmp_path, {"model_type": "chatglm", "position_encoding_2d": True, **keys}))
    assert (found.family, found.revision, found.template) == ("ChatGLM-6B", revision, "chatglm")
    assert found.family_rule.endswith(f"; {revision}: {rule}")


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"ice_text__model": ""}, "ChatGLM-6B"),
        ({"tokenizer__model": ""}, "ChatGLM2/ChatGLM3"),
        ({"tokenizer__model": "", "ice_text__model": ""}, "ChatGLM2/ChatGLM3"),
        ({}, "ChatGLM2/ChatGLM3"),
    ],
)
def test_a_tokenizers_folder_is_told_by_its_vocabulary_file(tmp_path, files, family):
    found = identify(
        folder(tmp_path, tokenizer_config__json={"tokenizer_class": "ChatGLMTokenizer"}, **files)
    )
    assert (found.family, found.revision) == (family, "")


def test_a_tokenizers_folder_without_a_vocabulary_is_told_by_its_tokens(tmp_path):
    tokenizer = {"tokenizer_class": "ChatGLMTokenizer", "gmask_token": "[gMASK]"}
    assert identify(folder(tmp_path, tokenizer_config__json=tokenizer)).family == "ChatGLM-6B"


def test_a_broken_config_is_an_error_with_line_and_column(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json:2:2: broken JSON"):
        identify(folder(tmp_path, config__json='{"model_type": "chatglm",\n oops}'))


def test_a_folder_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        identify(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        identify(tmp_path / "missing")


def test_where_the_format_is_needed_and_open_the_error_asks_for_it():
    assert require_template("chatglm2", "here") == "chatglm2"
    with pytest.raises(ConfigError) as caught:
        require_template(None, "here")
    assert "template=" in caught.value.hint
