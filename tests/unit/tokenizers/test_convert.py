"""A converted tokenizer makes the ids of the original, except of control tokens spelled in a text."""

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from glmtune.conversation import encode_messages
from glmtune.tokenizers import read_tokenizer
from glmtune.tokenizers.convert import chat_template_of, convert_tokenizer
from tiny import TEXT, tiny_ice, tiny_sentencepiece, tiny_tiktoken

TINY = {
    "chatglm2": tiny_sentencepiece,
    "chatglm3": tiny_sentencepiece,
    "glm4": tiny_tiktoken,
    "glm4_base": tiny_tiktoken,
}
CHATS = [
    [("user", "你好")],
    [("user", "How do I get to the library?\n  Please!"), ("assistant", " 一直往前走。"), ("user", "谢谢")],
]


@cache
def both(template: str) -> tuple[Any, Tokenizer]:
    tokenizer = read_tokenizer(TINY[template](Path(mkdtemp()), template), template)
    return tokenizer, convert_tokenizer(tokenizer)


def ids_of(converted: Tokenizer, text: str) -> list[int]:
    ids: list[int] = converted.encode(text, add_special_tokens=False).ids
    return ids


def spells_control(converted: Tokenizer, text: str) -> bool:
    return any(token.content in text for token in converted.get_added_tokens_decoder().values())


@pytest.mark.parametrize("template", ["chatglm3", "glm4"])
@given(text=st.text(max_size=30) | st.text(alphabet=sorted(set(TEXT)), max_size=60))
def test_any_text_has_the_same_ids(template: str, text: str) -> None:
    tokenizer, converted = both(template)
    if not spells_control(converted, text):
        assert ids_of(converted, text) == tokenizer.encode_plain(text)


@pytest.mark.parametrize("template", TINY)
@pytest.mark.parametrize("turns", CHATS)
def test_the_template_makes_the_same_chat(template: str, turns: list[tuple[str, str]]) -> None:
    tokenizer, converted = both(template)
    fast = PreTrainedTokenizerFast(tokenizer_object=converted, chat_template=chat_template_of(tokenizer))
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = fast.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_messages(tokenizer, messages)


@pytest.mark.parametrize("template", TINY)
def test_text_begins_and_is_decoded_as_the_originals(template: str) -> None:
    tokenizer, converted = both(template)
    text = "今天天气很好，we walk to the park."
    assert converted.encode(text).ids == [*tokenizer.get_prefix_tokens(), *tokenizer.encode_plain(text)]
    assert converted.decode(tokenizer.encode_plain(text)) == text


def test_the_names_of_control_tokens_that_are_parts_of_words_stay_text() -> None:
    tokenizer, converted = both("chatglm3")
    assert ids_of(converted, "a sophist's people") == tokenizer.encode_plain("a sophist's people")
    assert ids_of(converted, "<sop>") == [tokenizer.control_id("sop")]


def test_the_hole_is_there_and_is_the_converted_ones_alone() -> None:
    tokenizer, converted = both("chatglm3")
    assert ids_of(converted, "</s>") == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in tokenizer.encode_plain("</s>")


def test_chatglm_6bs_is_not_converted(tmp_path: Path) -> None:
    assert convert_tokenizer(read_tokenizer(tiny_ice(tmp_path))) is None


REAL = {
    "chatglm2": ("chatglm2_3.tokenizer.model", "chatglm2-6b_20230908", "v2"),
    "chatglm3": ("chatglm2_3.tokenizer.model", "chatglm3-6b_20231207", "v3"),
    "glm4": ("glm4.tokenizer.model", "glm-4-9b-chat", "glm4"),
}


@pytest.mark.shared
@pytest.mark.parametrize("template", REAL)
def test_the_genuine_vocabularies_are_converted_exactly(template: str, shared: Path, tmp_path: Path) -> None:
    vocabulary, config, golden = REAL[template]
    shutil.copyfile(shared / "tokenizers" / vocabulary, tmp_path / "tokenizer.model")
    for path in (shared / "tokenizers" / "configs" / config).glob("*.json"):
        shutil.copyfile(path, tmp_path / path.name)
    tokenizer = read_tokenizer(tmp_path, template)
    converted = convert_tokenizer(tokenizer)
    assert converted is not None
    known = json.loads((shared / "goldens" / "tokens" / f"{golden}.json").read_text(encoding="utf-8"))
    texts = [text for text in set(strings(known)) if not spells_control(converted, text)]
    assert len(texts) > 300
    for text in texts:
        assert ids_of(converted, text) == tokenizer.encode_plain(text)


def strings(value: Any) -> Iterator[str]:
    """Every string within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
