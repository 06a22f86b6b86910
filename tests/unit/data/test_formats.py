"""Rows become messages, or an error that says what is wrong with the row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.formats import FORMATS, find_parser
from glmtune.errors import ConfigError, DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Message

PAIRS = [name for name, known in FORMATS.items() if not known.is_dialogue]


def parse(row: dict, **settings: object) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in find_parser([row], Data(**settings))(row)]


def refusal(row: dict, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        parse(row, **settings)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", PAIRS)
def test_every_format_is_found_by_its_columns(name):
    row = {column: f"text of {column}" for column in FORMATS[name].columns}
    question, answer = (f"text of {column}" for column in FORMATS[name].columns)
    assert parse({**row, "id": 7}) == [("user", question), ("assistant", answer)]


@pytest.mark.parametrize("name", PAIRS)
def test_every_format_refuses_an_empty_answer(name):
    question, answer = FORMATS[name].columns
    assert str(refusal({question: "q", answer: " "})) == f"{answer!r} must be non-empty text, got ' '"


def test_an_alpaca_input_follows_the_instruction_on_a_new_line():
    row = {"instruction": "翻译成英文", "input": "你好", "output": "Hello"}
    assert parse(row) == [("user", "翻译成英文\n你好"), ("assistant", "Hello")]


@pytest.mark.parametrize("nothing", ["", "  ", None])
def test_an_empty_alpaca_input_adds_no_line(nothing):
    row = {"instruction": "说你好", "input": nothing, "output": "你好"}
    assert parse(row)[0] == ("user", "说你好")


def test_history_comes_before_the_question_as_messages():
    row = {"prompt": "c", "response": "d", "history": [["a", "b"]]}
    assert parse(row) == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


@pytest.mark.parametrize("nothing", [[], None, ""])
def test_no_history_is_no_messages(nothing):
    assert len(parse({"prompt": "c", "response": "d", "history": nothing})) == 2


def test_alpaca_rows_may_have_a_history_too():
    row = {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]}
    assert [text for _, text in parse(row)] == ["a", "b", "c", "d"]


def test_a_history_written_as_json_in_a_cell_is_read():
    assert len(parse({"prompt": "c", "response": "d", "history": '[["a", "b"]]'})) == 4


def test_the_history_column_can_be_named():
    row = {"prompt": "c", "response": "d", "earlier": [["a", "b"]]}
    assert len(parse(row, history_column="earlier")) == 4


def test_a_named_history_column_must_be_there():
    error = refusal({"prompt": "c", "response": "d"}, history_column="earlier")
    assert "column 'earlier' is missing" in str(error)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("what?", "'history' must be [[question, answer], ...], got 'what?'"),
        ({"a": "b"}, '\'history\' must be [[question, answer], ...], got {"a": "b"}'),
        ([["a", "b"], ["c"]], "'history[1]' must be [question, answer], got [\"c\"]"),
        ([{"role": "user"}], '\'history[0]\' must be [question, answer], got {"role": "user"}'),
        ([["a", " "]], "'history[0][1]' must be non-empty text, got ' '"),
        ([[5, "b"]], "'history[0][0]' must be text, got 5"),
    ],
)
def test_a_history_of_another_shape_is_refused(history, message):
    assert str(refusal({"prompt": "c", "response": "d", "history": history})) == message


def test_a_system_column_becomes_the_first_message():
    assert parse({"prompt": "a", "response": "b", "system": "Be brief."})[0] == ("system", "Be brief.")


def test_a_system_text_in_row_and_settings_is_refused():
    assert "'system'" in str(refusal({"prompt": "a", "response": "b", "system": "x"}, system="y"))


def test_an_empty_question_is_kept():
    assert parse({"content": "", "summary": "b"})[0] == ("user", "")


@pytest.mark.parametrize(("answer", "shown"), [(["b"], '["b"]'), ({}, "{}")])
def test_an_answer_that_is_not_text_is_refused(answer, shown):
    assert str(refusal({"content": "a", "summary": answer})) == f"'summary' must be text, got {shown}"


def test_an_answer_of_null_is_empty():
    assert str(refusal({"content": "a", "summary": None})) == "'summary' must be non-empty text, got null"


def test_a_long_value_is_shown_shortened():
    assert len(str(refusal({"content": "a", "summary": ["x" * 500]}))) < 120


def test_half_a_character_is_refused_before_a_tokenizer_meets_it():
    assert "half a character, got '\\ud83d' at character 3" in str(
        refusal({"content": "a", "summary": "ab\ud83d"})
    )


def test_named_columns_are_taken_whatever_their_names():
    row = {"问": "1+1?", "答": "2", "prompt": "x", "response": "y"}
    assert parse(row, prompt_column="问", response_column="答") == [("user", "1+1?"), ("assistant", "2")]


def test_one_named_column_alone_is_refused():
    with pytest.raises(ConfigError, match=r"data\.response_column"):
        parse({"a": "x", "b": "y"}, prompt_column="a")


def test_unknown_columns_are_listed_with_the_settings_that_name_them():
    error = refusal({"ask": "x", "reply": "y"})
    assert str(error) == "cannot tell the format; columns found: 'ask', 'reply'"
    assert error.hint.endswith("data.prompt_column=ask data.response_column=reply")


@pytest.mark.parametrize("wrong", ["sumary", "Sumary", " sumary "])
def test_a_misspelt_column_is_answered_with_the_nearest_spelling(wrong):
    error = refusal({"content": "a", wrong: "b"})
    assert str(error).startswith("column 'summary' is missing")
    assert error.hint.startswith(f"did you mean {wrong!r}?")


def test_a_misspelt_instruction_is_not_silently_left_out():
    assert "'instruction' is missing" in str(refusal({"instrution": "a", "input": "b", "output": "c"}))


def test_a_column_missing_in_one_row_only_is_that_rows_error():
    good, bad = {"content": "a", "summary": "b"}, {"content": "a"}
    parse_row = find_parser([good, good, bad], Data())
    assert len(parse_row(good)) == 2
    with pytest.raises(DataError, match="column 'summary' is missing; columns found: 'content'"):
        parse_row(bad)


def test_rows_that_fit_two_formats_are_refused():
    error = refusal({"prompt": "a", "response": "b", "question": "c", "answer": "d"})
    assert "prompt/response and question/answer" in str(error)


@given(st.text(), st.text().filter(lambda text: text.strip() and "<think>" not in text))
def test_text_reaches_the_messages_unchanged(question, answer):
    row = {"prompt": question, "response": answer}
    assert find_parser([row], Data())(row) == (Message("user", question), Message("assistant", answer))


@given(
    st.dictionaries(
        st.sampled_from(["instruction", "input", "output", "prompt", "response", "history", "system"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c, max_size=3)
        ),
    )
)
def test_any_row_gives_messages_that_end_with_an_answer_or_a_data_error(row):
    try:
        messages = find_parser([row], Data())(row)
    except DataError:
        return
    assert messages[-1].role == "assistant"
    assert all(m.content.strip() for m in messages if m.role == "assistant")
