"""A tokenizer's folder with bits turned, files cut and values of wrong types: opened, or refused in words."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glmtune.conversation import encode_messages
from glmtune.errors import CheckpointError, GlmtuneError
from glmtune.tokenizers import read_tokenizer, register
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken


def json_folder(folder: Path) -> None:
    tiny_json(folder)
    (folder / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")


FAMILIES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "chatglm2": ("chatglm2", partial(tiny_sentencepiece, template="chatglm2")),
    "chatglm3": ("chatglm3", tiny_sentencepiece),
    "glm4": ("glm4", tiny_tiktoken),
    "glm4_0414": ("glm4_0414", json_folder),
    "late": ("chatglm", tiny_ice),
    "mid": ("chatglm", partial(tiny_ice, revision="mid")),
}
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3.5, 1e308, 10**30, float("inf")),
    *("", "x", "left", "\0", "你好" * 50, "\ud800", "{% for", "{{ messages }}"),
    *([], [1], ["a"], [[["x"]]], [{"name": "default", "template": "x"}]),
    *({}, {"a": 1}, {"content": 5}, {"content": "<|user|>"}, {"default": "{{ 1 }}"}),
    *({"0": {"content": "a"}}, {"0": 5}, {"x": {"content": "a"}}, {"-1": {"content": "q"}}),
    {"9" * 20: {"content": "a", "special": True}},
    {"__type": "AddedToken", "content": "zz"},
    {"AutoTokenizer": ["a.B", None]},
]
KEYS = [
    *("chat_template", "added_tokens_decoder", "unk_token", "bos_token", "eos_token", "pad_token"),
    *("mask_token", "sep_token", "cls_token", "additional_special_tokens", "extra_special_tokens"),
    *("model_specific_special_tokens", "model_max_length", "tokenizer_class", "padding_side"),
    *("truncation_side", "auto_map", "clean_up_tokenization_spaces", "name_or_path", "template"),
    *("ice_revision", "encode_special_tokens", "gmask_token", "model_input_names", "backend"),
    *("vocab_file", "tokenizer_file", "added_tokens", "special_tokens_map_file", "init_inputs"),
    *("processor_class", "fast_tokenizer_files", "self", "args", "kwargs", "vocab", "merges"),
    *("ice_file", "split_special_tokens", "add_bos_token"),
]


def swap_type(folder: Path, draw: random.Random) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content[draw.choice([*KEYS, *content])] = draw.choice(ODD)
    path.write_text(json.dumps(content), encoding="utf-8")


def swap_inside(folder: Path, draw: random.Random) -> None:
    """One value somewhere in the largest JSON file."""
    path = max(folder.glob("*.json"), key=lambda path: path.stat().st_size)
    part = content = json.loads(path.read_text(encoding="utf-8"))
    while True:
        key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
        if not part[key] or not isinstance(part[key], dict | list) or draw.random() < 0.3:
            break
        part = part[key]
    part[key] = draw.choice(ODD)
    path.write_text(json.dumps(content), encoding="utf-8")


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def turn_bits(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 2, 8])):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def replace(path: Path, draw: random.Random) -> None:
    path.unlink()
    match draw.choice(["gone", "folder", "empty", "loop"]):
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "loop":
            path.symlink_to(path)


def damage(folder: Path, draw: random.Random) -> None:
    if draw.random() < 0.5:
        draw.choice([swap_type, swap_type, swap_inside])(folder, draw)
    else:
        path = draw.choice(sorted(folder.iterdir()))
        draw.choice([cut, turn_bits, turn_bits, replace])(path, draw)


def use(folder: Path, template: str | None) -> None:
    tokenizer = read_tokenizer(folder, template)
    tokenizer.encode_plain("今天 a<|user|>\n\t  x")
    tokenizer.decode([1, 2, 3])
    if tokenizer.template:
        encode_messages(tokenizer, [{"role": "user", "content": "今天"}])
        assert tokenizer.stop_ids
        assert isinstance(tokenizer.end_id, int)


def check_files(cases: int, whole: Path, folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, (_, build) in FAMILIES.items():
        build(whole / name)
    for case in range(cases):
        draw = random.Random(case)
        name = draw.choice(list(FAMILIES))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole / name, folder)
        damage(folder, draw)
        try:
            use(folder, draw.choice([None, FAMILIES[name][0]]))
            counts["read"] += 1
        except GlmtuneError as err:
            counts["refused"] += 1
            assert err.hint, err
    return counts


def test_a_damaged_folder_is_opened_or_refused(tmp_path: Path) -> None:
    counts = check_files(300, tmp_path / "whole", tmp_path / "case")
    assert min(counts["read"], counts["refused"]) > 60, counts


@pytest.mark.slow
def test_a_damaged_folder_is_opened_or_refused_many_times(tmp_path: Path) -> None:
    counts = check_files(3000, tmp_path / "whole", tmp_path / "case")
    assert min(counts["read"], counts["refused"]) > 600, counts


def test_the_tokenizers_of_auto_tokenizer_refuse_in_the_same_words(tmp_path: Path) -> None:
    register()
    for build in (tiny_sentencepiece, tiny_tiktoken):
        path = build(tmp_path / build.__name__) / "tokenizer_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "unk_token": [1]}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"no tokenizer can be made of this.*unk_token"):
            AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False)


def test_a_vocabulary_without_a_byte_is_damaged(tmp_path: Path) -> None:
    path = tiny_tiktoken(tmp_path / "ranks") / "tokenizer.model"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[97] = b"//8= 97\n"  # two bytes in place of `a`
    path.write_bytes(b"".join(lines))
    with pytest.raises(CheckpointError, match="no token for the byte 0x61"):
        read_tokenizer(path.parent)
    json_folder(tmp_path / "json")
    path = tmp_path / "json" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"ÿ":', '"ÿÿÿ":'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: no token 'ÿ'"):
        read_tokenizer(path.parent)


def test_a_length_saved_in_tokenizer_json_cuts_nothing(tmp_path: Path) -> None:
    json_folder(tmp_path)
    whole = read_tokenizer(tmp_path).encode_plain("今天天气很好")
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    limits = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps({**content, "truncation": limits}), encoding="utf-8")
    assert read_tokenizer(tmp_path).encode_plain("今天天气很好") == whole
