"""Rows encoded many at once are those encoded one by one; text by text, cut by cut."""

import random
from dataclasses import replace
from typing import Any

import pytest

from glmtune.conversation import learned_segments
from glmtune.data import encode
from glmtune.data.counts import TokenCounts
from glmtune.data.cut import Cutter, Limits, Size
from glmtune.data.encode import encode_examples, training_conversations
from glmtune.data.example import Example
from glmtune.data.plain import ANSWER, QUESTION, PlainShape, is_plain
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import TEMPLATES, Call, Message, Segment
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
    """The rows as they are if each is cut on its own, and each text of it encoded whole."""
    limits, found = Limits.of(data), []

    def render(messages: list[Message]) -> list[Segment]:
        return (learned_segments(tokenizer, messages) or [[]])[0]

    for row in rows:
        for conversation in training_conversations(tokenizer, row.messages, data):
            *_, size = one_by_one(tokenizer, conversation)
            cutter = Cutter(limits, render, TokenCounts(tokenizer), conversation, size)
            if size.num_tokens and cutter.fit():
                found.append((*one_by_one(tokenizer, cutter.conversation)[:2], row.where))
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


@pytest.mark.parametrize("limit", [{"max_tokens": 70}, {"max_source_tokens": 45, "max_target_tokens": 30}])
def test_a_cut_keeps_beginnings_and_ends_and_leaves_little_room(tokenizer, limit) -> None:
    limits, rooms = Limits.of(Data(**limit)), []
    for row in talks(30, seed=3):
        question, answer = row.messages[0], replace(row.messages[1], loss=True)
        *_, size = one_by_one(tokenizer, [question, answer])
        cutter = Cutter(
            limits,
            lambda messages: learned_segments(tokenizer, messages)[0],
            TokenCounts(tokenizer),
            [question, answer],
            size,
        )
        assert cutter.fit()
        assert cutter.size == one_by_one(tokenizer, cutter.conversation)[2]
        short_question, short_answer = (message.content for message in cutter.conversation)
        heads = range(len(short_question) + 1)
        assert any(
            question.content.startswith(short_question[:i]) and question.content.endswith(short_question[i:])
            for i in heads
        )
        assert answer.content.startswith(short_answer)
        if "answer" in cutter.cuts:
            rooms.append(-limits.target_excess(cutter.size))
        elif "question" in cutter.cuts:
            rooms.append(-limits.source_excess(cutter.size))
    # a token of the text that stays may be several where it stands beside others
    assert len(rooms) > 8
    assert max(rooms) <= 6
    assert sum(rooms) <= len(rooms)


def test_texts_encoded_at_once_are_those_encoded_one_by_one(tokenizer) -> None:
    texts = ["", *(message.content for row in talks(20, seed=1) for message in row.messages)]
    assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == list(map(tokenizer.encode_plain, texts))


def test_rows_do_not_depend_on_how_many_are_encoded_at_once(tokenizer, monkeypatch) -> None:
    data, rows = Data(max_tokens=60, overlong="cut_any"), talks(12, seed=2)
    whole = encode_examples(tokenizer, rows, data)
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 0)
    each = encode_examples(tokenizer, rows, data)
    assert as_lists(each) == as_lists(whole)
    assert each.report == whole.report


ODD = [
    *(
        "天",
        " 天",
        "天\n",
        "",
        " ",
        "\u3000天",
        "天\x1f",
        "[[训练时间]]",
        "好,hao:你?",
        "\n\n答：",
        "[Round 1]",
        "###",
    ),
    *(
        "<|assistant|>",
        "</s>",
        "[gMASK]sop",
        "<think>",
        "</think>",
        "<think>想</think>答",
        "想</think>",
        "I think",
    ),
    *(
        "/nothink",
        "天/nothink",
        "<|user|>\n",
        QUESTION,
        ANSWER,
        f"{ANSWER}{QUESTION}",
        "{}",
        "{0}",
        "%s",
        "a  b",
    ),
]


@pytest.mark.parametrize(
    "settings",
    [{}, {"source_prefix": "问： "}, {"source_prefix": QUESTION}, {"loss": "last_turn"}, {"max_tokens": 40}],
)
def test_rows_that_are_filled_in_are_those_that_are_rendered(tokenizer, settings, monkeypatch) -> None:
    texts = [(one, other) for one in ODD for other in ODD if other.strip() not in ("", "<think>", "</think>")]
    texts = random.Random(0).sample([pair for pair in texts if not pair[1].endswith("</think>")], 120)
    rows = [
        Example((Message("user", question), Message("assistant", answer)), f"train.jsonl:{number}")
        for number, (question, answer) in enumerate(texts)
    ]
    data = Data(**{"max_tokens": 4096} | settings, overlong="cut_any")
    filled = encode_examples(tokenizer, rows, data)
    assert sum(is_plain(row.messages) for row in rows) > 20
    monkeypatch.setattr(encode, "is_plain", lambda _: False)
    rendered = encode_examples(tokenizer, rows, data)
    assert as_lists(filled) == as_lists(rendered)
    assert filled.report == rendered.report


@pytest.mark.parametrize(
    "changed",
    [{"loss": False}, {"thought": ""}, {"metadata": "python"}, {"calls": (Call("f", {}),)}, {"tools": []}],
)
def test_an_answer_with_more_than_a_text_is_rendered(changed) -> None:
    assert is_plain([Message("user", "天"), Message("assistant", "好")])
    assert not is_plain([Message("user", "天"), Message("assistant", "好", **changed)])


def test_a_format_of_which_the_marks_do_not_come_back_whole_has_no_shape(tokenizer) -> None:
    once = [Segment(QUESTION), Segment(ANSWER, is_target=True)]
    assert PlainShape.learn(tokenizer, once) is not None
    assert PlainShape.learn(tokenizer, [*once, Segment(QUESTION)]) is None
    assert PlainShape.learn(tokenizer, [Segment(QUESTION + ANSWER)]) is None
    assert PlainShape.learn(tokenizer, [Segment(QUESTION[:-1]), Segment(ANSWER)]) is None


def test_of_two_bad_rows_the_first_is_told(tokenizer) -> None:
    good, bad = Message("assistant", "早"), Message("user", "\ud800")
    long = Message("user", "天" * 90)
    rows = [Example((long, good), "train.jsonl:1"), Example((bad, good), "train.jsonl:2")]
    with pytest.raises(DataError, match=r"^train\.jsonl:1: .* tokens, allowed is"):
        encode_examples(tokenizer, rows, Data(max_tokens=40, overlong="error"))
    with pytest.raises(DataError, match=r"^train\.jsonl:2: 'text' holds half a character"):
        encode_examples(tokenizer, rows[1:], Data(max_tokens=40))
