"""Rows encoded many at once are those encoded one by one; text by text, cut by cut."""

import random
from typing import Any

import pytest

from glmtune.conversation import learned_segments
from glmtune.data import encode
from glmtune.data.cut import Cutter, Limits, Size
from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import TEMPLATES, Message
from glmtune.tokenizers import read_tokenizer
from tiny import tiny_ice, tiny_tokenizer

NAMES = [*TEMPLATES, "early", "mid"]
PIECES = [
    *"今天天气很好我们去公园，。！？\n",
    "the ",
    "</s>",
    "<|user|>",
    "sop",
    "  ",
    "\t",
    "123",
    "🙂",
    "龘",
]


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in TEMPLATES:
        return tiny_tokenizer(folder, request.param)
    return read_tokenizer(tiny_ice(folder, request.param))


def talks(count: int, seed: int = 0) -> list[Example]:
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choice(PIECES) for _ in range(draw.choice([1, 6, 60])))

    rows = []
    for number in range(count):
        turns = []
        for _ in range(draw.choice([1, 1, 3])):
            turns += [Message("user", text()), Message("assistant", text(), loss=draw.random() < 0.8)]
        rows.append(Example(tuple(turns), f"train.jsonl:{number}"))
    return rows


def as_lists(encoded: Any) -> list[Any]:
    return [(row.input_ids.tolist(), row.labels.tolist(), row.where) for row in encoded.rows]


def one_by_one(tokenizer: Any, messages: list[Message]) -> tuple[list[int], list[int], Size]:
    """Ids, labels and size by the plainest way: each segment encoded where it stands."""
    ids: list[int] = []
    labels: list[int] = []
    num_target = 0
    for segment in (learned_segments(tokenizer, messages) or [[]])[0]:
        new = tokenizer.encode_segments([segment])
        ids += new
        labels += new if segment.is_target else [-100] * len(new)
        num_target = num_target + len(new) if segment.is_target else 0
    return ids, labels, Size(len(ids), num_target)


def expected(tokenizer: Any, rows: list[Example], data: Data) -> list[Any]:
    """The rows as they are if each text is encoded whole for each cut that is tried."""
    limits, found = Limits.of(data), []
    cutter = Cutter(
        limits,
        lambda messages: one_by_one(tokenizer, messages)[2],
        lambda text: len(tokenizer.encode_plain(text)),
    )
    for row in rows:
        for conversation in encode._conversations(tokenizer, row.messages, data):
            *_, size = one_by_one(tokenizer, conversation)
            if not size.num_tokens:
                continue
            short = conversation if limits.is_met(size) else (cutter.cut(conversation) or (None,))[0]
            if short is not None:
                found.append((*one_by_one(tokenizer, short)[:2], row.where))
    return found


@pytest.mark.parametrize(
    "limit",
    [
        {"max_tokens": 4096},
        {"max_tokens": 90},
        {"max_tokens": 40},
        {"max_source_tokens": 40, "max_target_tokens": 20},
    ],
)
def test_rows_encoded_at_once_are_those_encoded_one_by_one_however_they_are_cut(tokenizer, limit) -> None:
    data, rows = Data(**limit, overlong="cut_any"), talks(12)
    assert as_lists(encode_examples(tokenizer, rows, data)) == expected(tokenizer, rows, data)


def test_texts_encoded_at_once_are_those_encoded_one_by_one(tokenizer) -> None:
    texts = ["", *(message.content for row in talks(20, seed=1) for message in row.messages)]
    assert tokenizer.encode_texts(texts) == [tokenizer.encode_plain(text) for text in texts]


def test_rows_do_not_depend_on_how_many_are_encoded_at_once(tokenizer, monkeypatch) -> None:
    data, rows = Data(max_tokens=60, overlong="cut_any"), talks(12, seed=2)
    whole = encode_examples(tokenizer, rows, data)
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 0)
    each = encode_examples(tokenizer, rows, data)
    assert as_lists(each) == as_lists(whole)
    assert each.report == whole.report


def test_of_two_bad_rows_the_first_is_told(tokenizer) -> None:
    good, bad = Message("assistant", "早"), Message("user", "\ud800")
    long = Message("user", "天" * 90)
    rows = [Example((long, good), "train.jsonl:1"), Example((bad, good), "train.jsonl:2")]
    with pytest.raises(DataError, match=r"^train\.jsonl:1: .* tokens, allowed is"):
        encode_examples(tokenizer, rows, Data(max_tokens=40, overlong="error"))
    with pytest.raises(DataError, match=r"^train\.jsonl:2: 'text' holds half a character"):
        encode_examples(tokenizer, rows[1:], Data(max_tokens=40))
