"""Rows for training: what they hold, and how they are cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.conversation import answer_text, encode_messages
from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.data.lengths import Lengths
from glmtune.data.prompts import encode_prompts
from glmtune.errors import ConfigError, DataError
from glmtune.evaluation.metrics import score
from glmtune.recipe.settings import Data
from glmtune.templates import TEMPLATES, Call, Message, visible_text
from glmtune.tokenizers import read_tokenizer
from tiny import tiny_ice, tiny_tokenizer

TURNS = ["chatglm3", "glm4", "glm4_base"]
TALK = [
    Message("user", "早"),
    Message("assistant", "早上好"),
    Message("user", "去哪"),
    Message("assistant", "公园"),
]


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> dict[str, Any]:
    return {name: tiny_tokenizer(tmp_path_factory.mktemp(name), name) for name in TEMPLATES}


@pytest.fixture(scope="module", params=["early", "mid", "late"])
def ice(request, tmp_path_factory) -> Any:
    return read_tokenizer(tiny_ice(tmp_path_factory.mktemp(request.param), request.param))


def example(*messages: Message) -> Example:
    return Example(tuple(messages), "train.jsonl:2")


def pair(question: str, answer: str) -> Example:
    return example(Message("user", question), Message("assistant", answer))


def decode(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode([int(index) for index in ids if index >= 0])


def one(tokenizer: Any, given_example: Example, **data: Any) -> Any:
    (row,) = encode_examples(tokenizer, [given_example], Data(**{"overlong": "cut_any", **data})).rows
    return row


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_row_is_the_prompt_of_chat_and_the_answer(four, name):
    tokenizer = four[name]
    row = one(tokenizer, example(*TALK), loss="last_turn")
    prompt = encode_messages(tokenizer, TALK[:3])
    assert row.input_ids.tolist()[: len(prompt)] == prompt
    assert row.input_ids.dtype == row.labels.dtype == np.int32
    assert row.labels[: len(prompt)].tolist() == [-100] * len(prompt)
    assert row.labels[len(prompt) :].tolist() == row.input_ids[len(prompt) :].tolist()
    assert row.where == "train.jsonl:2"


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
def test_formats_of_rounds_give_a_row_for_each_answer(four, name):
    rows = encode_examples(four[name], [example(*TALK)], Data()).rows
    assert [decode(four[name], row.labels) for row in rows] == ["早上好", "公园"]


CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120)
CONVERSATIONS = st.lists(st.tuples(CHARACTERS, CHARACTERS), min_size=1, max_size=4)
LIMITS = st.one_of(
    st.integers(40, 200).map(lambda n: {"max_tokens": n}),
    # 12: GLM-4.5's empty thought, one character of four bytes and the end token
    st.tuples(st.integers(30, 100), st.integers(12, 60)).map(
        lambda n: {"max_source_tokens": n[0], "max_target_tokens": n[1]}
    ),
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CONVERSATIONS, LIMITS, st.sampled_from(["all_turns", "last_turn"]), st.booleans())
def test_every_row_ends_with_its_learned_stop_token_and_fits(four, rounds, limit, loss, has_system):
    talk = [
        Message(role, text)
        for texts in rounds
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]
    for name, tokenizer in four.items():
        if name == "glmz1":
            continue  # its empty thought alone is longer than these limits
        has_no_system = name in ("chatglm", "chatglm2")
        system = [Message("system", "短")] if has_system and not has_no_system else []
        data = Data(**limit, loss=loss, overlong="cut_any")
        rows = encode_examples(tokenizer, [example(*system, *talk)], data).rows
        assert rows
        thinking = {"<think>", "</think>", "/nothink"}  # GLM-4.5's answers hold them
        specials = {tokenizer.control_id(token) for token in {*TEMPLATES[name].control_tokens} - thinking}
        prefix = tokenizer.get_prefix_tokens()
        for row in rows:
            ids, labels = row.input_ids.tolist(), row.labels.tolist()
            assert labels[-1] == ids[-1]
            assert ids[-1] in tokenizer.stop_ids
            assert all(label in (-100, index) for label, index in zip(labels, ids, strict=True))
            assert ids[: len(prefix)] == prefix
            target = len(ids) - 1 - max(i for i, label in enumerate(labels) if label == -100)
            if "max_tokens" in limit:
                assert len(ids) <= limit["max_tokens"]
            else:
                assert len(ids) - target <= limit["max_source_tokens"]
                assert target <= limit["max_target_tokens"]
            # every control token opens a turn or the text, or ends it; content gives none
            turns = sum(index in specials for index in ids[len(prefix) :])
            assert has_no_system or turns <= len(system) + len(talk) + 1
            assert "�" not in decode(tokenizer, ids) or "�" in "".join(map("".join, rounds))


@settings(max_examples=examples(150))
@given(CONVERSATIONS, LIMITS, st.sampled_from(["", "写：", "<sop>[gMASK]"]))
def test_what_asks_chatglm_6b_stands_behind_every_prompt_however_it_is_cut(ice, rounds, limit, prefix):
    talk = [
        Message(role, text)
        for texts in rounds
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]
    data = Data(**limit, overlong="cut_any", source_prefix=prefix)
    asks = [ice.control_id("[gMASK]"), ice.control_id("<sop>")]
    controls = {ice.control_id(name) for name in TEMPLATES["chatglm"].control_tokens}
    for row in encode_examples(ice, [example(*talk)], data).rows:
        ids, labels = row.input_ids.tolist(), row.labels.tolist()
        start = ids.index(asks[1]) + 1
        assert [index for index in ids if index in controls] == [*asks, ice.end_id]
        assert ids[start - 2 : start] == asks
        assert labels == [-100] * start + ids[start:]
        assert ids[-1] == ice.end_id
    prompts, _ = encode_prompts(ice, [example(*talk)], data)
    assert prompts[0].ids[-2:] == asks
    assert not controls.intersection(prompts[0].ids[:-2])


def test_the_oldest_turns_go_first_and_the_system_message_stays(four):
    tokenizer = four["chatglm3"]
    talk = [Message("system", "短")]
    for number in range(6):
        talk += [Message("user", f"question {number}"), Message("assistant", f"answer {number}")]
    encoded = encode_examples(tokenizer, [example(*talk)], Data(max_tokens=90, overlong="cut_any"))
    text = decode(tokenizer, encoded.rows[0].input_ids)
    assert text.startswith("[gMASK]sop<|system|> \n 短<|user|>")
    assert "question 5" in text
    assert "answer 5" in text
    assert "question 0" not in text
    assert text.count("question") == text.count("answer")
    assert encoded.report.cuts == {"turns": 1}


def test_the_source_prefix_stays_when_the_first_turn_goes(four):
    talk = [Message(role, "Z" * 30) for _ in range(5) for role in ("user", "assistant")]
    data = {"max_tokens": 120, "source_prefix": "写"}
    for name, tokenizer in four.items():
        row = encode_examples(tokenizer, [example(*talk)], Data(**data, overlong="cut_any")).rows[-1]
        text = decode(tokenizer, row.input_ids)
        assert text.count("写") == 1, name
        assert ("写[Round 1]" if name == "chatglm2" else "写Z") in text
        assert text.index("写") < text.index("Z"), name


def test_a_question_loses_its_middle_before_the_answer_loses_its_end(four):
    tokenizer = four["glm4"]
    question = "Q" * 20 + "Z" * 200 + "J" * 20
    encoded = encode_examples(
        tokenizer, [pair(question, "早上" * 10)], Data(max_tokens=128, overlong="cut_any")
    )
    text = decode(tokenizer, encoded.rows[0].input_ids)
    kept = text.split("<|user|>")[1].split("<|assistant|>")[0].strip()
    assert kept.startswith("Q" * 20)
    assert kept.endswith("J" * 20)
    assert "早上" * 10 in text
    assert encoded.report.cuts == {"question": 1}
    assert 120 <= len(encoded.rows[0].input_ids) <= 128


def test_a_long_answer_leaves_a_question_its_share_and_keeps_its_end_token(four):
    tokenizer = four["chatglm2"]
    encoded = encode_examples(
        tokenizer, [pair("Z" * 300, "Q" * 900)], Data(max_tokens=128, overlong="cut_any")
    )
    (row,) = encoded.rows
    assert row.labels[-1] == 2
    assert decode(tokenizer, row.input_ids).count("Z") >= 25
    assert encoded.report.cuts == {"question": 1, "answer": 1}
    assert len(row.input_ids) in (127, 128)


def test_separate_limits_cut_question_and_answer_on_their_own(four):
    row = one(four["chatglm3"], pair("中" * 90, "答" * 90), max_source_tokens=40, max_target_tokens=20)
    num_target = int((row.labels >= 0).sum())
    assert (len(row.labels) - num_target, num_target) == (40, 20)


def test_half_of_the_rows_cut_is_refused_unless_allowed(four):
    rows = [pair("短", "短"), pair("长" * 500, "答"), pair("长" * 500, "答")]
    with pytest.raises(DataError, match="67% of 3 rows are longer than max_tokens 100") as caught:
        encode_examples(four["glm4"], rows, Data(max_tokens=100))
    assert "cut_any" in caught.value.hint
    report = encode_examples(four["glm4"], rows, Data(max_tokens=100, overlong="cut_any")).report
    assert report.rows_cut == 2
    assert len(encode_examples(four["glm4"], rows[:2], Data(max_tokens=100)).rows) == 2


def test_long_rows_can_be_dropped_or_refused(four):
    rows = [pair("短", "短"), pair("长" * 500, "答")]
    encoded = encode_examples(four["glm4"], rows, Data(max_tokens=100, overlong="drop"))
    assert len(encoded.rows) == 1
    assert encoded.report.drops == {"overlong": 1}
    with pytest.raises(DataError, match=r"train\.jsonl:2: .* tokens, allowed is max_tokens 100"):
        encode_examples(four["glm4"], rows, Data(max_tokens=100, overlong="error"))
    with pytest.raises(DataError, match="no row is left"):
        encode_examples(four["glm4"], rows[1:], Data(max_tokens=100, overlong="drop"))


def test_what_no_cut_can_fit_is_dropped_and_counted(four):
    rows = [pair("短", "短"), example(Message("system", "规则" * 200), *TALK)]
    report = encode_examples(four["glm4"], rows, Data(max_tokens=100, overlong="cut_any")).report
    assert report.drops == {"uncuttable": 1}


def encode_prompt(tokenizer, asked, data):
    """Ids and reference of one conversation."""
    (prompt,), _ = encode_prompts(tokenizer, [asked], data)
    return prompt.ids, prompt.reference


def test_every_row_is_in_the_report(four):
    rows = [pair("短", "短") for _ in range(18)]
    rows += [pair("长" * 500, "答"), example(Message("user", "问"), Message("assistant", "答", loss=False))]
    report = encode_examples(four["glm4"], rows, Data(max_tokens=100)).report
    lengths = sorted(report.lengths)
    assert (report.rows, report.rows_cut, report.rows_dropped) == (20, 1, 1)
    assert report.percentiles == Lengths(lengths[9], lengths[18], lengths[19], lengths[19])
    assert report.tokens_lost > 300
    assert report.warning is not None
    assert "10% of the rows" in report.warning
    assert "1 lost the middle of a question; 1 dropped: nothing to learn" in "\n".join(report.lines())
    assert encode_examples(four["glm4"], rows[:18], Data(max_tokens=100)).report.warning is None


def test_prefix_and_system_text_go_where_chat_puts_them(four):
    data = Data(source_prefix="写广告：", system="你是店员")
    row = one(four["chatglm3"], example(*TALK), source_prefix="写广告：", system="你是店员")
    text = decode(four["chatglm3"], row.input_ids)
    assert text.startswith("[gMASK]sop<|system|> \n 你是店员<|user|> \n 写广告：早<|assistant|>")
    assert text.count("写广告：") == 1
    own = one(four["chatglm3"], example(Message("system", "自己的"), *TALK), system="你是店员")
    assert "你是店员" not in decode(four["chatglm3"], own.input_ids)
    prompt, reference = encode_prompt(four["chatglm3"], example(*TALK), data)
    assert row.input_ids.tolist()[: len(prompt)] == prompt
    assert reference == "公园"


def test_a_system_text_with_chatglm2_is_an_error_with_its_cure(four):
    with pytest.raises(DataError, match=r"train\.jsonl:2: message 1: ChatGLM2 has no system") as caught:
        one(four["chatglm2"], example(*TALK), system="你是店员")
    assert "source_prefix" in caught.value.hint


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_prompt_is_cut_as_the_source_part(four, name):
    tokenizer = four[name]
    data = Data(max_source_tokens=60, max_target_tokens=8)
    prompt, reference = encode_prompt(tokenizer, example(*TALK, Message("user", "中" * 200), TALK[1]), data)
    assert len(prompt) in (58, 59, 60)
    assert reference == "早上好"
    prefix = tokenizer.get_prefix_tokens()
    assert prompt[: len(prefix)] == prefix
    assert prompt[-1] == encode_messages(tokenizer, TALK[:1])[-1]
    with pytest.raises(DataError, match="no answer to compare"):
        encode_prompt(tokenizer, example(TALK[0]), data)


def test_the_thudm_encoding_of_chatglm_6b_is_its_own_scripts(ice):
    settings = {"encoding": "thudm", "max_source_tokens": 24, "max_target_tokens": 8}
    gmask, start = ice.control_id("[gMASK]"), ice.control_id("<sop>")
    encode = ice.encode_plain
    row = one(ice, pair("Z" * 90, "Q" * 90), **settings)
    prompt, answer = encode("Z" * 90)[:23], encode("Q" * 90)[:6]
    assert row.input_ids.tolist() == [*prompt, gmask, start, *answer, ice.end_id]
    assert row.labels.tolist() == [-100] * 24 + [start, *answer, ice.end_id]
    ids, reference = encode_prompt(ice, pair("Z" * 90, "公园"), Data(**settings))
    assert ids == [*prompt[:22], gmask, start]
    assert reference == "公园"
    numbered = one(ice, pair("早", "早上好"), **settings, history_column="history")
    assert decode(ice, numbered.input_ids).startswith("[Round 0]\n问:早\n答:")


NAMED = {"thudm": "chatglm2", "chatglm3": "chatglm3", "glm4": "glm4"}


@pytest.mark.parametrize("encoding", list(NAMED))
def test_named_encodings_cut_as_their_scripts_do(four, encoding):
    tokenizer = four[NAMED[encoding]]
    long = pair("Z" * 90 if encoding == "thudm" else "早", "Q" * 90)
    data = Data(encoding=encoding, max_source_tokens=24, max_target_tokens=8)
    (row,) = encode_examples(tokenizer, [long], data).rows
    assert len(row.input_ids) == 24 + 8 + 1
    assert encode_examples(tokenizer, [long], data).report.rows_cut == 1
    dropping = data.model_copy(update={"overlong": "drop"})
    assert len(encode_examples(tokenizer, [pair("早", "好"), long], dropping).rows) == 1


@pytest.mark.parametrize("encoding", ["chatglm3", "glm4"])
def test_a_row_of_which_the_official_cut_leaves_nothing_to_learn_is_counted(four, encoding):
    data = Data(encoding=encoding, max_source_tokens=24, max_target_tokens=8)
    rows = [pair("早", "好"), pair("Z" * 90, "好")]
    assert encode_examples(four[NAMED[encoding]], rows, data).report.drops == {"unlearned": 1}


@pytest.mark.parametrize("encoding", list(NAMED))
def test_named_encodings_belong_to_their_family(four, encoding):
    data = Data(encoding=encoding, max_source_tokens=24, max_target_tokens=8)
    wrong = "chatglm2" if encoding != "thudm" else "chatglm3"
    with pytest.raises(ConfigError, match=r"data\.encoding"):
        encode_examples(four[wrong], [pair("早", "好")], data)


@pytest.mark.parametrize("encoding", list(NAMED))
def test_named_encodings_ask_as_their_scripts_do(four, encoding):
    tokenizer = four[NAMED[encoding]]
    data = Data(encoding=encoding, max_source_tokens=90, max_target_tokens=40)
    prompt, reference = encode_prompt(tokenizer, pair("早", "早上好"), data)
    assert prompt == encode_messages(tokenizer, TALK[:1])
    assert reference == "早上好"


def test_combining_learns_the_last_answer_and_asks_without_showing_it(four):
    data = Data(encoding="glm4", combine=True, max_source_tokens=90, max_target_tokens=40)
    (row,) = encode_examples(four["glm4"], [example(*TALK)], data).rows
    assert decode(four["glm4"], row.labels).strip() == "公园 <|user|>"
    prompt, _ = encode_prompt(four["glm4"], example(*TALK), data)
    assert prompt == encode_messages(four["glm4"], TALK[:3])


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_prompts_that_are_cut_are_counted(four, name):
    short, long = example(*TALK), pair("中" * 200, "好")
    prompts, report = encode_prompts(four[name], [short, long], Data(max_tokens=90))
    assert [bool(prompt.cuts) for prompt in prompts] == [False, True]
    assert report.rows_cut == 1
    assert report.warning is not None
    assert report.tokens_lost == prompts[1].uncut_tokens - len(prompts[1].ids)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("chatglm", "thudm"), ("chatglm2", "thudm"), ("chatglm3", "chatglm3"), ("glm4", "glm4")],
)
def test_the_prefix_stands_in_training_where_chat_puts_it(four, name, encoding):
    tokenizer = four[name]
    data = Data(encoding=encoding, source_prefix="写广告：", max_source_tokens=90, max_target_tokens=40)
    (row,) = encode_examples(tokenizer, [pair("早", "早上好")], data).rows
    segments = tokenizer.segments([Message("user", "早")], source_prefix="写广告：")
    sent = tokenizer.encode_segments(segments)
    assert row.input_ids.tolist()[: len(sent)] == sent


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatglm3", "get_time\n ```python\ntool_call(city='上海')\n```"),
        ("glm4", 'get_time\n{"city": "上海"}'),
        ("glm4_base", 'get_time\n{"city": "上海"}'),
        (
            "glm45",
            "<tool_call>get_time\n<arg_key>city</arg_key>\n<arg_value>上海</arg_value>\n</tool_call>",
        ),
    ],
)
def test_an_answer_that_is_a_call_is_compared_as_the_model_writes_it(four, name, text):
    call = Message("assistant", "", calls=(Call("get_time", {"city": "上海"}),))
    prompts, _ = encode_prompts(four[name], [example(Message("user", "几点？"), call)], Data())
    assert prompts[0].reference == text


def test_a_call_given_as_text_is_compared_with_its_name(four):
    call = Message("assistant", "tool_call()", metadata="get_time")
    prompts, _ = encode_prompts(four["chatglm3"], [example(Message("user", "几点？"), call)], Data())
    assert prompts[0].reference == "get_time\n tool_call()"


ANSWERS = ["你好，世界！是吗？（是；不是）", "早上好：  a, b\n\t１２３ ok...", "公园里，"]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_perfect_answer_scores_100(four, name):
    assert_perfect_answers_score_100(four[name], Data())


@pytest.mark.parametrize("encoding", list(NAMED))
def test_a_perfect_answer_scores_100_in_the_scripts_own_encodings(four, encoding):
    data = Data(encoding=encoding, max_source_tokens=90, max_target_tokens=90)
    assert_perfect_answers_score_100(four[NAMED[encoding]], data)


@pytest.mark.parametrize("encoding", ["chat", "thudm"])
def test_a_perfect_answer_of_a_chatglm_6b_scores_100_whatever_its_revision(ice, encoding):
    data = Data(encoding=encoding, max_source_tokens=90, max_target_tokens=90)
    assert_perfect_answers_score_100(ice, data)


def assert_perfect_answers_score_100(tokenizer: Any, data: Data) -> None:
    rows = [pair("早", answer) for answer in ANSWERS]
    learned = [row.labels[row.labels >= 0].tolist() for row in encode_examples(tokenizer, rows, data).rows]
    prompts = encode_prompts(tokenizer, rows, data)[0]
    starts = frozenset(tokenizer.get_prefix_tokens()) | {tokenizer.bos_token_id}  # of the thudm script
    ids = [[i for i in row if i not in (*tokenizer.stop_ids, *starts)] for row in learned]
    said = [visible_text(tokenizer.chat_format, answer_text(tokenizer, row)) for row in ids]
    assert said == [prompt.reference for prompt in prompts]
    scores = score(said, [prompt.reference for prompt in prompts], variant="thudm")
    assert [scores[name] for name in ("rouge-1", "rouge-2", "rouge-l")] == [100] * 3


# --- thoughts ---

THINKING = [
    example(Message("user", "早"), Message("assistant", "早上好", thought="该问好")),
    example(Message("user", "去哪"), Message("assistant", "公园")),
]


@pytest.mark.parametrize("name", [name for name, format_ in TEMPLATES.items() if format_.learns_thoughts])
def test_a_thought_is_learned_in_front_of_its_answer(four, name):
    encoded = encode_examples(four[name], THINKING, Data())
    learned = decode(four[name], encoded.rows[0].labels)
    assert learned.index("该问好") < learned.index("</think>") < learned.index("早上好")
    assert encoded.report.thoughts_lost == 0


@pytest.mark.parametrize("name", [name for name, format_ in TEMPLATES.items() if not format_.learns_thoughts])
def test_a_thought_that_a_format_has_no_place_for_is_counted(four, name):
    encoded = encode_examples(four[name], THINKING, Data())
    assert "该问好" not in decode(four[name], encoded.rows[0].input_ids)
    assert encoded.report.thoughts_lost == 1
    assert "1 thoughts left out: this chat format learns none" in encoded.report.lines()


def test_the_official_scripts_leave_thoughts_out_too(four):
    data = Data(encoding="chatglm3", max_source_tokens=90, max_target_tokens=90)
    assert encode_examples(four["chatglm3"], THINKING, data).report.thoughts_lost == 1


def test_an_answer_that_is_only_a_thought_is_refused_where_thoughts_are_left_out(four):
    rows = [example(Message("user", "早"), Message("assistant", "", thought="该问好"))]
    with pytest.raises(DataError, match="only a thought, which the chat format of GLM-4 leaves out"):
        encode_examples(four["glm4"], rows, Data())
    learned = decode(four["glm45"], encode_examples(four["glm45"], rows, Data()).rows[0].labels)
    assert learned == "\n<think>该问好</think><|user|>"


@pytest.mark.parametrize("name", ["glm45", "glmz1"])
@given(thought=st.text("想z", min_size=1, max_size=60), answer=st.text("答z", min_size=1, max_size=60))
def test_no_cut_breaks_a_thought_off(four, name, thought, answer):
    for turn in (
        Message("assistant", answer, thought=thought),
        Message("assistant", f"<think>{thought}</think>{answer}"),
    ):
        rows = [example(Message("user", "早"), turn), *THINKING]
        for row in encode_examples(four[name], rows, Data(max_tokens=60, overlong="cut_any")).rows:
            assert "</think>" in decode(four[name], row.labels)
