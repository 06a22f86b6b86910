"""Rows of turns: the messages of each format, and the errors for bad rows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.data.formats import find_parser
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import Call, Message, render
from glmtune.templates.reading import ROLE_NAMES
from glmtune.templates.tools import read_arguments

WEATHER = {"name": "weather", "description": "查天气", "parameters": {"type": "object", "properties": {}}}
ASKED = Message("user", "北京冷吗？")
CALLED = Message("assistant", "", calls=(Call("weather", {"city": "北京", "days": 1}),))
SEEN = Message("observation", "3 度")
ANSWERED = Message("assistant", "有点冷，3 度。")
WRAPPED = {"type": "function", "function": WEATHER}
TALK = (Message("system", "", tools=[WRAPPED]), ASKED, CALLED, SEEN, ANSWERED)

CALL_TEXT = '{"name": "weather", "arguments": {"city": "北京", "days": 1}}'
OPENAI_CALL = {
    "id": "a",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "北京", "days": 1}'},
}
GOOD: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "北京冷吗？"},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "observation", "value": "3 度"},
            {"from": "gpt", "value": "有点冷，3 度。"},
        ],
        "tools": json.dumps([WEATHER]),
    },
    "messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "北京冷吗？"}]},
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "3 度"},
            {"role": "assistant", "content": "有点冷，3 度。"},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    },
    "chatglm3": {
        "conversations": [
            {"role": "user", "content": "北京冷吗？"},
            {
                "role": "tool",
                "name": "weather",
                "parameters": {"city": "北京", "days": 1},
                "observation": "3 度",
            },
            {"role": "assistant", "content": "有点冷，3 度。"},
        ],
        "tools": [WEATHER],
    },
}


def parse(row: dict, **settings: object) -> tuple[Message, ...]:
    return find_parser([row], Data(**settings))(row)


def chat(*turns: dict, **columns: object) -> dict:
    return {"messages": list(turns), **columns}


def user(content: object = "a") -> dict:
    return {"role": "user", "content": content}


def assistant(content: object = "b", **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_row_of_each_format_is_the_same_conversation(name):
    found = find_parser([GOOD[name]], Data())
    assert found.format == name
    assert found(GOOD[name]) == TALK


FROM_HINT = 'a turn is like {"from": "human", "value": "..."}'
ROLES = "known: " + ", ".join(ROLE_NAMES)
ROLE_HINT = 'a message is like {"role": "user", "content": "..."}'
NOTHING_HINT = "write the answer, or remove the row: there is nothing to learn in it"


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": " "}]},
            "'conversations[1].value' must be non-empty text, got ' '",
            NOTHING_HINT,
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "robot", "value": "b"}]},
            "'conversations[1].from' is no known role, got 'robot'",
            f"{ROLES}, function_call",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "text": "b"}]},
            "'conversations[1]' has no 'value', got 'from', 'text'",
            FROM_HINT,
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "look"}]},
            "'conversations[1].value' must be a call, got 'look'",
            'a call is like {"name": "get_weather", "arguments": {"city": "北京"}}',
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]},
            "'conversations[1]' is an observation without a call before it",
            "an observation follows the assistant's turn that called the tool",
        ),
        (
            {"conversations": [user(), assistant(5)]},
            "'conversations[1].content' must be text, got 5",
            'put it in quotes: "5"',
        ),
        ({"conversations": [user(), "b"]}, "'conversations[1]' must be an object, got 'b'", ROLE_HINT),
        ({"conversations": "hello"}, "'conversations' must be a list of turns, got 'hello'", ROLE_HINT),
        ({"conversations": []}, "'conversations' holds no turns, got []", ROLE_HINT),
        (
            chat(user(), {"role": "assistant"}),
            "'messages[1]' has no 'content', got 'role'",
            ROLE_HINT,
        ),
        (
            chat(user(), assistant(None)),
            "'messages[1].content' must be text, got null",
            'write "" for an empty cell, or leave the row out',
        ),
        (
            chat(user(), {"role": "robot", "content": "b"}),
            "'messages[1].role' is no known role, got 'robot'",
            ROLES,
        ),
        (
            chat(user(), assistant(None, tool_calls=[{"function": {"name": "f", "arguments": "{x}"}}])),
            "'messages[1].tool_calls[0].arguments' must be an object, got '{x}'",
            'a call is like {"name": "get_weather", "arguments": {"city": "北京"}}',
        ),
        (
            chat(user([{"type": "image_url", "image_url": "x"}]), assistant()),
            "'messages[0].content' holds parts that are no text: image_url, got "
            '[{"type": "image_url", "image_url": "x"}]',
            "these models read text alone: leave such rows out, or the parts with what refers to them",
        ),
        (
            chat(user(), assistant("b", loss="no")),
            "'messages[1].loss' must be true or false, got 'no'",
            "it says if the turn is learned",
        ),
        (
            chat({**user(), "loss": True}, assistant()),
            "'messages[0].loss' is set in a turn of role 'user', got true",
            "only an assistant's turn can be learned: remove the flag",
        ),
        (
            chat(user(), assistant(), tools=[{"description": "x"}]),
            '\'tools[0]\' must be a tool with a name, got {"description": "x"}',
            'tools are a list like [{"name": "get_weather", "description": "...", "parameters": {...}}]',
        ),
        (
            chat(
                {"role": "system", "content": "s", "tools": [WEATHER]}, user(), assistant(), tools=[WEATHER]
            ),
            "'tools' is given for all and by a system turn, got both",
            "keep one",
        ),
        (
            chat({"role": "system", "content": "s"}, user(), assistant(), system="t"),
            "'system' is given by its column and by a turn, got both",
            "keep one: leave data.system unset, or remove the row's own",
        ),
        (
            chat(user(), assistant(), history=[["c", "d"]]),
            "'history' stands beside 'messages', got both",
            "put all turns of the conversation into 'messages'",
        ),
    ],
)
def test_a_bad_row_says_where_and_what_to_do(row, message, hint):
    with pytest.raises(DataError) as caught:
        parse(row)
    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_a_dialogue_ends_with_its_last_answer():
    row = chat(user("a"), assistant("b"), user("c"))
    assert [m.content for m in parse(row)] == ["a", "b"]
    called = {
        "conversations": [user("a"), {"role": "tool", "name": "f", "parameters": {}, "observation": "x"}]
    }
    assert [m.role for m in parse(called)] == ["user", "assistant"]


def test_a_dialogue_without_an_answer_holds_nothing():
    assert parse(chat(user("a"))) == ()
    assert parse(chat(user("a"), tools=[WEATHER])) == ()


def test_an_empty_question_and_an_empty_observation_are_kept():
    turns = chat(
        user(""),
        assistant(None, function_call={"name": "f"}),
        {"role": "function", "content": ""},
        assistant(),
    )
    assert [m.content for m in parse(turns)] == ["", "", "", "b"]


@pytest.mark.parametrize(
    ("flag", "loss"), [({}, True), ({"loss": False}, False), ({"weight": 0}, False), ({"loss": None}, True)]
)
def test_the_loss_flag_of_a_turn_is_kept(flag, loss):
    assert [m.loss for m in parse(chat(user(), assistant("b", **flag), user(), assistant()))][1] is loss


@pytest.mark.parametrize(
    "written",
    [
        CALL_TEXT,
        '{"name": "weather", "parameters": {"city": "北京", "days": 1}}',
        'weather\n{"city": "北京", "days": 1}',
        "weather\n```python\ntool_call(city='北京', days=1)\n```",
    ],
)
def test_an_answer_before_an_observation_counts_as_its_call(written):
    row = chat(
        user("北京冷吗？"), assistant(written), {"role": "observation", "content": "3 度"}, assistant()
    )
    assert parse(row)[1] == CALLED
    assert parse(chat(user(), assistant(written)))[1] == Message("assistant", written)


def test_an_answer_that_cannot_be_read_as_a_call_stays_as_it_is():
    row = chat(user(), assistant("让我看看"), {"role": "observation", "content": "x"}, assistant())
    assert parse(row)[1] == Message("assistant", "让我看看")


@pytest.mark.parametrize(
    "content", ['{"city": "北京", "days": 1}', "```python\ntool_call(city='北京', days=1)\n```"]
)
def test_a_turn_with_the_tools_name_as_metadata_is_its_call(content):
    assert parse(chat(user(), assistant(content, metadata="weather")))[1] == CALLED


def test_code_for_an_interpreter_stays_as_it_is():
    code = "```python\nprint(1)\n```"
    assert parse(chat(user(), assistant(code, metadata="interpreter")))[1] == Message(
        "assistant", code, "interpreter"
    )


def test_a_turn_stays_whole_with_thought_text_and_calls():
    said = assistant("我查一下。", reasoning_content="要查天气", tool_calls=[OPENAI_CALL])
    row = chat(user(), said, {"role": "tool", "content": "3 度"}, assistant())
    whole = Message("assistant", "我查一下。", thought="要查天气", calls=CALLED.calls)
    assert parse(row)[1:3] == (whole, SEEN)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "think"])
def test_a_thought_is_known_by_each_of_its_names(key):
    assert parse(chat(user(), assistant("七", **{key: "数一数"})))[1] == Message(
        "assistant", "七", thought="数一数"
    )


def test_a_call_that_was_written_apart_joins_the_turn_before_it():
    row = {
        "conversations": [
            {"from": "human", "value": "北京冷吗？"},
            {"from": "gpt", "value": "我查一下。"},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "function_call", "value": CALL_TEXT},
            {"from": "observation", "value": "3 度"},
            {"from": "observation", "value": "4 度"},
            {"from": "gpt", "value": "冷。"},
        ]
    }
    assert parse(row)[1] == Message("assistant", "我查一下。", calls=CALLED.calls * 2)


def test_several_calls_stand_in_one_turn_and_their_results_in_the_order_of_the_calls():
    other = {"id": "b", "function": {"name": "time", "arguments": "{}"}}
    results = [{"role": "tool", "tool_call_id": key, "content": key} for key in ("b", "a")]
    found = parse(chat(user(), assistant("", tool_calls=[OPENAI_CALL, other]), *results, assistant()))
    assert [call.name for call in found[1].calls] == ["weather", "time"]
    assert [m.content for m in found[2:4]] == ["a", "b"]
    with pytest.raises(DataError, match=r"'messages\[1\]' makes 2 calls, got 1 observations"):
        parse(chat(user(), assistant("", tool_calls=[OPENAI_CALL, other]), results[0], assistant()))


@pytest.mark.parametrize("ids", [("b", "zz"), ("b", "b")])
def test_a_result_that_answers_no_call_of_its_turn_is_refused(ids):
    other = {"id": "b", "function": {"name": "time", "arguments": "{}"}}
    results = [{"role": "tool", "tool_call_id": key, "content": key} for key in ids]
    with pytest.raises(DataError, match="makes the calls a, b, but its results answer"):
        parse(chat(user(), assistant("", tool_calls=[OPENAI_CALL, other]), *results, assistant()))
    with pytest.raises(DataError, match="makes the calls a, but its results answer b"):
        parse(chat(user(), assistant("", tool_calls=[OPENAI_CALL]), results[0], assistant()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"name": "f", "args": {"a": 1}}, "holds 'args', which nobody reads"),
        ({"type": "tool_use", "name": "f", "input": {"a": 1}}, "holds 'input', which nobody reads"),
        ({"function": {"name": "f"}, "args": {"a": 1}}, "holds 'args', which nobody reads"),
        ({"name": "f", "arguments": {"a": 1}, "parameters": {"b": 1}}, "holds its arguments twice"),
        ({"name": "f", "arguments": {"a": float("nan")}}, "holds NaN or infinity"),
    ],
)
def test_no_argument_of_a_call_is_lost(call, words):
    with pytest.raises(DataError, match=words):
        parse(chat(user(), assistant("", tool_calls=[call])))


def test_arguments_may_be_called_parameters():
    call = {"name": "f", "arguments": None, "parameters": {"a": 1}}
    assert parse(chat(user(), assistant("", tool_calls=[call])))[1].calls == (Call("f", {"a": 1}),)


def test_tools_join_the_system_text_wherever_that_is():
    row = chat({"role": "system", "content": "s"}, user(), assistant(), tools=[WEATHER])
    assert parse(row)[0] == Message("system", "s", tools=[WRAPPED])
    assert parse(chat(user(), assistant(), tools=[WEATHER], system="t"))[0].content == "t"
    assert parse(chat(user(), assistant(), tools=[WEATHER]), system="u")[0].content == "u"
    assert parse(chat(user(), assistant(), tools="[]")) == (Message("user", "a"), Message("assistant", "b"))
    assert parse(chat({"role": "system", "content": " "}, user(), assistant()))[0].role == "user"


def test_a_cell_of_a_table_holds_turns_as_json():
    assert (
        parse({"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'})[
            1
        ].content
        == "b"
    )


def test_the_official_scripts_take_no_calls():
    with pytest.raises(DataError, match="official scripts do not take it"):
        parse(GOOD["messages"], encoding="glm4", max_source_tokens=8, max_target_tokens=8)


# What the chat formats send for a call


def sent(template: str, *messages: Message) -> str:
    return "".join(segment.text for segment in render(template, messages, False))


def test_chatglm3_is_sent_a_code_block_and_glm4_json():
    assert sent("chatglm3", CALLED).endswith(
        "<|assistant|>weather\n```python\ntool_call(city='北京', days=1)\n```"
    )
    for template in ("glm4", "glm4_base"):
        assert sent(template, CALLED).endswith('<|assistant|>weather\n{"city": "北京", "days": 1}')


def test_glm4_is_sent_a_call_without_arguments_too():
    assert sent("glm4", Message("assistant", "", calls=(Call("now", {}),))).endswith("<|assistant|>now\n{}")


def test_both_are_sent_functions_as_they_know_them():
    bare = Message("system", "", tools=[WEATHER])
    for template in ("chatglm3", "glm4", "glm4_0414", "glmz1"):
        assert sent(template, TALK[0]) == sent(template, bare)
    assert '[\n    {\n        "name": "weather"' in sent("chatglm3", TALK[0])
    assert '<tools>\n{"type": "function", "function": {"name": "weather"' in sent("glm45", TALK[0])


@given(
    st.dictionaries(
        st.text() | st.sampled_from(["from", "class", "ﬁ", "x"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text()
            | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        ),
        max_size=4,
    )
)
def test_any_arguments_come_back_from_what_is_sent(arguments):
    call = Message("assistant", "", calls=(Call("f", arguments),))
    for template in ("chatglm3", "glm4"):
        content = sent(template, call).partition("<|assistant|>f\n")[2]
        assert read_arguments(content) == arguments


@pytest.mark.parametrize(
    "code",
    ["tool_call(1)", "run(x=1)", "tool_call(x=y)", "tool_call(x=(1, 2))", "tool_call(", "tool_call(**3)"],
)
def test_code_that_is_no_plain_call_is_not_read_as_one(code):
    assert read_arguments(f"```python\n{code}\n```") is None


def test_roles_are_known_by_their_usual_names_in_any_case():
    for user, gpt in (
        ("human", "gpt"),
        ("User", "bot"),
        ("USER", "Assistant"),
        ("user", "ai"),
        ("user", "model"),
    ):
        for row in (
            {"messages": [{"role": user, "content": "a"}, {"role": gpt, "content": "b"}]},
            {"conversations": [{"from": user, "value": "a"}, {"from": gpt, "value": "b"}]},
        ):
            assert [(m.role, m.content) for m in find_parser([row], Data())(row)] == [
                ("user", "a"),
                ("assistant", "b"),
            ]
