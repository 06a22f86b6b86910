"""The conversation behind the page, and its texts."""

from string import Formatter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.language import LANGUAGES
from glmtune.templates import Taught
from glmtune.web.talks import Exchange, Written, as_shown, as_typed, bubbles, find_exchange, messages_for
from glmtune.web.words import Words, preferred_language, table

EN = Words("en")


def answered(question: str, *texts: str, thought: str = "") -> Exchange:
    return Exchange(
        question, [Written(thought=thought, text=text, remembered=text, is_done=True) for text in texts]
    )


def test_each_side_is_sent_its_own_answers_and_single_turns_stand_alone() -> None:
    exchanges = [answered("one", "tuned", "base"), answered("two", "tuned 2", "base 2"), Exchange("three")]
    sent = messages_for(exchanges, 1, system="", taught=Taught("be brief"), is_multi_turn=True)
    assert [message["content"] for message in sent] == ["be brief", "one", "base", "two", "base 2", "three"]
    assert [message["role"] for message in sent] == ["system", *("user", "assistant") * 2, "user"]
    sent = messages_for(exchanges, 0, system="mine", taught=Taught("be brief"), is_multi_turn=False)
    assert [message["content"] for message in sent] == ["mine", "three"]


def test_a_round_without_an_answer_of_this_side_is_not_sent() -> None:
    exchanges = [answered("one", "tuned"), answered("two", ""), Exchange("three")]
    for side, contents in ((0, ["one", "tuned", "three"]), (1, ["three"])):
        sent = messages_for(exchanges, side, system="", taught=Taught(), is_multi_turn=True)
        assert [message["content"] for message in sent] == contents


def test_a_thought_is_folded_above_its_answer() -> None:
    shown = bubbles([answered("q", "42", thought="<think>\n6 x 7\n</think>")], 0, EN)
    assert [(bubble["role"], bubble["content"]) for bubble in shown] == [
        ("user", "q"),
        ("assistant", "6 x 7"),
        ("assistant", "42"),
    ]
    assert shown[1]["metadata"] == {"title": "thought", "status": "done"}
    thinking = Exchange("q", [Written(thought="6 x")])
    assert bubbles([thinking], 0, EN)[1]["metadata"]["status"] == "pending"


def test_every_bubble_leads_to_its_exchange() -> None:
    exchanges = [answered("a", "1", thought="hm"), answered("b", "2", "3"), Exchange("c")]
    for side in (0, 1):
        index = 0
        for number, exchange in enumerate(exchanges):
            for _ in bubbles([exchange], side, EN):
                assert find_exchange(exchanges, side, index, EN) == number
                index += 1


@given(st.text(max_size=40))
@settings(max_examples=40)
def test_a_question_is_shown_without_markdown_and_edited_as_it_was_typed(question: str) -> None:
    assert as_typed(as_shown(question)) == question


def test_the_attributes_of_an_advert_keep_their_asterisks() -> None:
    assert as_shown("类型#裤*版型#宽松*") == r"类型\#裤\*版型\#宽松\*"


def test_every_text_is_there_in_both_languages_with_the_same_fields() -> None:
    for key, texts in table().items():
        fields = [{name for _, name, _, _ in Formatter().parse(texts[lang]) if name} for lang in LANGUAGES]
        assert fields[0] == fields[1], key
        assert all(texts[lang].strip() for lang in LANGUAGES), key


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("de,zh-TW;q=0.7,en;q=0.3", "zh"),
        ("en;q=0.2,zh;q=0.7", "zh"),
        ("fr", "en"),
        ("", "en"),
        (";;q=x,", "en"),
    ],
)
def test_the_browser_s_first_language_that_there_is_decides(accept: str, language: str) -> None:
    assert preferred_language(accept) == language
