"""A chat draws as the caller says, else as the model's folder, else as the family's official chat."""

import json
from pathlib import Path

import pytest

from commands import glmtune
from glmtune import Chat
from glmtune.generate.sampling import Sampling
from glmtune.templates import TEMPLATES
from models import tiny_folder, tiny_v1_folder

OFFICIAL = {
    "chatglm": (0.95, 0.7, 50, 2048),
    "chatglm2": (0.8, 0.8, 50, 8192),
    "chatglm3": (0.8, 0.8, 50, 8192),
    "glm4": (0.8, 0.8, 50, 8192),
    "glm4_base": (0.8, 0.8, 50, 8192),
    "glm4_0414": (0.6, 0.8, 50, 8192),
    "glmz1": (0.6, 0.8, 50, 8192),
    "glm45": (0.7, 0.9, 50, 8192),
    "glm45_nothink": (0.7, 0.9, 50, 8192),
}
"""temperature, top_p, top_k and max_length: the table of docs/limits.md."""


def test_every_format_has_its_official_settings():
    found = {
        name: (chat.temperature, chat.top_p, chat.top_k, chat.max_length)
        for name, template in TEMPLATES.items()
        for chat in [template.chat]
    }
    assert found == OFFICIAL


@pytest.mark.parametrize("page", ["limits.md", "limits.zh.md"])
def test_the_guides_show_these_settings(page):
    text = (Path(__file__).parents[3] / "docs" / page).read_text("utf-8")
    for name, (temperature, top_p, top_k, max_length) in OFFICIAL.items():
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"| {temperature:g} | {top_p:g} | {top_k} | {max_length:,} |" in row, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


def drawn(sampling: Sampling) -> tuple:
    return sampling.temperature, sampling.top_p, sampling.top_k, sampling.is_greedy


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ({}, {}, (0.8, 0.8, 50, False)),
        ({}, {"temperature": 0.5, "top_k": 0}, (0.5, 0.8, 0, False)),
        ({"temperature": 0.3, "top_p": 0.9}, {}, (0.3, 0.9, 50, False)),
        ({"temperature": 0.3, "do_sample": True}, {"temperature": 0}, (0, 0.8, 50, True)),
        ({"do_sample": False}, {}, (0.8, 0.8, 50, True)),
        ({"do_sample": False}, {"temperature": 0.5}, (0.5, 0.8, 50, False)),
        ({"do_sample": False}, {"max_new_tokens": 4}, (0.8, 0.8, 50, True)),
    ],
)
def test_the_caller_comes_first_and_the_folder_second(folder, file, given, expected):
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, **file}), encoding="utf-8")
    assert drawn(Chat.open(folder, **given).sampling) == expected


def test_a_repetition_penalty_of_the_folder_is_used(folder):
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.2}', encoding="utf-8")
    assert Chat.open(folder).sampling.repetition_penalty == 1.2


def test_chatglm_6b_draws_as_its_own_chat_does(tmp_path):
    assert drawn(Chat.open(tiny_v1_folder(tmp_path)).sampling) == (0.95, 0.7, 50, False)


def test_the_command_shows_what_it_uses_and_says_where_an_answer_was_cut(folder):
    (folder / "generation_config.json").unlink()
    done = glmtune("chat", folder, "--max-new-tokens", 3, "--top-k", 0, cwd=folder, typed="你好\n")
    assert "> temperature 0.8, top_p 0.8, top_k off; at most 3 tokens an answer\n" in done.stderr
    assert "> the answer is cut at max_new_tokens, 3 tokens\n" in done.stderr
