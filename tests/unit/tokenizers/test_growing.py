"""The text of an answer that grows is, at each token, what decoding all of its ids gives."""

import random
from pathlib import Path
from typing import Any

import pytest

from glmtune.places import BUNDLED
from glmtune.tokenizers import GrowingText, load_tokenizer
from tiny import tiny_ice, tiny_json, tiny_sentencepiece, tiny_tiktoken

PIECES = [
    *("今天 天气", "<n><|tab|>", "  \n\t <|blank_3|>", "🙂🙂龘", "a b, c. d !", "<|blank_", "80|>"),
    *("▁x", "<", "n", ">", " " * 90, "\n", "don't . , ?"),
]


def build(name: str, folder: Path) -> Any:
    match name:
        case "glm-tiny":
            return load_tokenizer(BUNDLED[name])
        case "early" | "mid" | "late":
            return load_tokenizer(tiny_ice(folder, name))
        case "glm4_0414":
            tiny_json(folder)
            (folder / "config.json").write_text('{"model_type": "glm4"}', encoding="utf-8")
            return load_tokenizer(folder)
    return load_tokenizer((tiny_tiktoken if name == "glm4" else tiny_sentencepiece)(folder, name))


def draw_ids(tokenizer: Any, draw: random.Random, kind: str) -> list[int]:
    size = len(tokenizer)
    match kind:
        case "any":
            return [draw.randrange(size) for _ in range(160)]
        case "bytes and control tokens":
            return [draw.choice([draw.randrange(size), draw.randrange(300), size - 1 - draw.randrange(30)])
                    for _ in range(160)]  # fmt: skip
    return [i for _ in range(14) for i in tokenizer.encode_plain(draw.choice(PIECES))]


@pytest.mark.parametrize(
    "name", ["chatglm2", "chatglm3", "glm4", "glm4_0414", "early", "mid", "late", "glm-tiny"]
)
def test_growing_text_is_the_text_of_all_ids(name: str, tmp_path: Path) -> None:
    tokenizer, draw = build(name, tmp_path), random.Random(0)
    for kind in ("any", "bytes and control tokens", "text", "text"):
        ids, growing = draw_ids(tokenizer, draw, kind), GrowingText(tokenizer)
        for end in range(1, len(ids) + 1):
            assert growing.add(ids[end - 1]) == tokenizer.decode(ids[:end])


def test_no_more_is_decoded_for_a_token_when_the_text_is_long(tmp_path: Path) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return str(tokenizer.decode(ids))

    tokenizer, counting = build("chatglm3", tmp_path), Counting()
    ids, growing = tokenizer.encode_plain("今天天气很好，we walk. " * 60), GrowingText(counting)
    for i in ids:
        growing.add(i)
    assert len(ids) > 800
    assert counting.longest <= 100
    assert growing.text == tokenizer.decode(ids)
