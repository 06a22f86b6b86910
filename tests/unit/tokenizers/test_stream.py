"""The pieces of a text that grows join, at each id, to what decoding all of them gives."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.locations import BUNDLED
from glmtune.tokenizers import ChatGLM4Tokenizer, ChatGLMTokenizer, IceTokenizer, read_tokenizer
from glmtune.tokenizers.stream import TextStream
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken

MOST_KEPT_BACK = len("<|blank_80|")
PIECES = [
    *("今天 天气", "<n><|tab|>", "  \n\t <|blank_3|>", "🙂🙂龘", "a b, c. d !", "<|blank_", "80|>"),
    *("▁x", "<", "n", ">", " " * 90, "\n", "don't . , ?"),
]


def build(name: str, folder: Path) -> Any:
    match name:
        case "glm-tiny":
            return read_tokenizer(BUNDLED[name])
        case "early" | "mid" | "late":
            return read_tokenizer(tiny_ice(folder, name))
        case "glm4_0414":
            tiny_json(folder)
            (folder / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")
            return read_tokenizer(folder)
    return read_tokenizer((tiny_tiktoken if name == "glm4" else tiny_sentencepiece)(folder, name))


def draw_ids(tokenizer: Any, draw: random.Random, kind: str) -> list[int]:
    size = len(tokenizer)
    match kind:
        case "any":
            return [draw.randrange(size) for _ in range(160)]
        case "bytes and control tokens":
            return [draw.choice([draw.randrange(size), draw.randrange(300), size - 1 - draw.randrange(30)])
                    for _ in range(160)]  # fmt: skip
    return [i for _ in range(14) for i in tokenizer.encode_plain(draw.choice(PIECES))]


def check(tokenizer: Any, ids: Sequence[int]) -> None:
    """The text is exact at each id, and what was given stays, ends in no half character, and is all of it."""
    stream, given = tokenizer.text_stream(), ""
    for end, token in enumerate(ids, 1):
        piece = stream.add(token)
        given += piece
        whole = tokenizer.decode(list(ids[:end]))
        assert stream.text == whole
        assert whole.startswith(given)
        assert len(whole) - len(given) <= MOST_KEPT_BACK
    assert given + stream.finish() == tokenizer.decode(list(ids))
    assert stream.text == tokenizer.decode(list(ids))


NAMES = ["chatglm2", "chatglm3", "glm4", "glm4_0414", "early", "mid", "late", "glm-tiny"]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def test_the_pieces_are_the_text_of_all_ids(tokenizer: Any) -> None:
    draw = random.Random(0)
    for kind in ("any", "bytes and control tokens", "text", "text"):
        check(tokenizer, draw_ids(tokenizer, draw, kind))


@settings(max_examples=10)
@given(data=st.data())
def test_the_pieces_are_the_text_of_any_ids(tokenizer: Any, data: Any) -> None:
    size = len(tokenizer)
    bytes_and_such, any_id = st.integers(0, 300), st.integers(0, size - 1)
    last = st.integers(max(size - 20, 0), size - 1)
    check(tokenizer, data.draw(st.lists(bytes_and_such | any_id | last, max_size=60)))
    check(
        tokenizer,
        tokenizer.encode_plain(data.draw(st.text(max_size=40) | st.text("<|n>blank_80 \n", max_size=40))),
    )


@pytest.mark.parametrize("name", ["chatglm3", "late"])
def test_a_space_that_the_clean_up_takes_away_is_kept_back(name: str, tmp_path: Path) -> None:
    tokenizer = build(name, tmp_path)
    tokenizer.clean_up_tokenization_spaces = True
    check(tokenizer, tokenizer.encode_plain("do n't . I 'm here , you 've it ! ' s  ' s <n 'm"))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("vocabulary", "opened"),
    [
        ("chatglm2_3.tokenizer.model", partial(ChatGLMTokenizer, template="chatglm3")),
        ("glm4.tokenizer.model", ChatGLM4Tokenizer),
        ("ice_text.model", IceTokenizer),
        ("ice_text.early.model", IceTokenizer),
    ],
)
def test_the_pieces_of_the_official_vocabularies_are_the_text(
    vocabulary: str, opened: Any, shared: Path
) -> None:
    tokenizer, draw = opened(str(shared / "tokenizers" / vocabulary)), random.Random(1)
    for kind in ("bytes and control tokens", "text"):
        check(tokenizer, draw_ids(tokenizer, draw, kind))


class Counting:
    """Counts the ids that are decoded."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.count = 0

    def decode(self, ids: list[int]) -> str:
        self.count += len(ids)
        return str(self.tokenizer.decode(ids))


def test_an_id_is_decoded_a_few_times_however_long_the_text_is(tokenizer: Any) -> None:
    text = tokenizer.encode_plain("今天天气很好，we walk.\n🙂龘  " * 20)
    control, byte = tokenizer.stop_ids[0], tokenizer.encode_plain("龘")[-1]
    for ids in (text, [control] * 400, [*text[:20], *[control] * 400], [byte] * 400):
        counting = Counting(tokenizer)
        stream = TextStream(counting.decode, tokenizer.count_open)
        for i in ids:
            stream.add(i)
        assert stream.text == tokenizer.decode(ids)
        assert counting.count <= 60 * len(ids)
