"""Chat formats as strings: what is sent, and what of it is learned."""

import json

import pytest

from glmtune.errors import ConfigError, DataError
from glmtune.templates import (
    TEMPLATES,
    Call,
    Message,
    Segment,
    messages_from_dicts,
    render,
    render_messages,
    stop_tokens,
    training_examples,
    visible_text,
)

TALK = [
    Message("user", "早"),
    Message("assistant", "早上好"),
    Message("user", "去哪"),
    Message("assistant", "公园"),
]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"city": "城市"}}}


def text(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def target(segments: list[Segment]) -> list[str]:
    return [segment.text for segment in segments if segment.is_target]


def test_chatglm2_numbers_its_rounds():
    sent = render("chatglm2", TALK[:3])
    assert [segment.text for segment in sent] == [
        "[gMASK]",
        "sop",
        "[Round 1]\n\n问：早\n\n答：早上好\n\n[Round 2]\n\n问：去哪\n\n答：",
    ]
    assert [segment.is_control for segment in sent] == [True, True, False]


def test_chatglm_6b_asks_with_the_bare_question_or_with_rounds_from_0():
    asks = ["[gMASK]", "<sop>"]
    assert [segment.text for segment in render("chatglm", TALK[:1])] == ["早", *asks]
    sent = render("chatglm", TALK[:3])
    assert [segment.text for segment in sent] == [
        "[Round 0]\n问：早\n答：早上好\n[Round 1]\n问：去哪\n答：",
        *asks,
    ]
    assert [segment.is_control for segment in sent] == [False, True, True]
    assert text(render("chatglm", TALK[:3], False)).endswith("[Round 1]\n问：去哪")
    assert text(render("chatglm", TALK[:2], False)) == "早[gMASK]<sop>早上好"
    assert text(render("chatglm", TALK[:3], source_prefix="写：")).startswith("写：[Round 0]")


def test_chatglm_6b_learns_one_answer_an_example():
    first, second = training_examples("chatglm", TALK)
    assert text(first) == "早[gMASK]<sop>早上好<eop>"
    assert target(second) == ["公园", "<eop>"]
    assert second[:-2] == render("chatglm", TALK[:3])


def test_chatglm2_learns_one_answer_an_example():
    first, second = training_examples("chatglm2", TALK)
    assert target(first) == ["早上好", "</s>"]
    assert target(second) == ["公园", "</s>"]
    assert second[: -len(target(second))] == render("chatglm2", TALK[:3])


def test_chatglm3_encodes_metadata_and_content_apart():
    sent = render("chatglm3", TALK[:1])
    assert [segment.text for segment in sent] == ["[gMASK]", "sop", "<|user|>", "\n", "早", "<|assistant|>"]


def test_chatglm3_learns_answers_and_the_tokens_that_end_them():
    (example,) = training_examples("chatglm3", TALK)
    assert target(example) == ["\n", "早上好", "<|user|>", "\n", "公园", "</s>"]
    assert text(example) == text(render("chatglm3", TALK, False)) + "</s>"


@pytest.mark.parametrize(("template", "newline"), [("glm4", ["\n早上好"]), ("glm4_base", ["\n", "早上好"])])
def test_glm4_answers_end_with_the_users_token(template, newline):
    (example,) = training_examples(template, TALK[:2])
    assert target(example) == [*newline, "<|user|>"]
    assert text(example) == "[gMASK]<sop><|user|>\n早<|assistant|>\n早上好<|user|>"


@pytest.mark.parametrize("template", ["chatglm3", "glm4", "glm4_base"])
def test_what_is_learned_is_what_chat_sends(template):
    (example,) = training_examples(template, TALK)
    asked = render(template, [*TALK, Message("user", "再见")])
    plain = [Segment(segment.text, segment.is_control) for segment in example]
    assert plain[:-1] == asked[: len(plain) - 1]
    assert example[-1].is_control
    assert example[-1].is_target


@pytest.mark.parametrize("template", ["chatglm3", "glm4"])
def test_a_tool_call_is_ended_by_the_observation(template):
    call = [Message("user", "天气"), Message("assistant", "{}", "weather"), Message("observation", "晴")]
    (example,) = training_examples(template, [*call, Message("assistant", "晴天")])
    ends = [segment.text for segment in example if segment.is_control and segment.is_target]
    assert ends == ["<|observation|>", stop_tokens(template)[0] if template == "chatglm3" else "<|user|>"]


def test_an_answer_before_another_answer_is_ended_by_its_role():
    (example,) = training_examples("chatglm3", [*TALK[:2], Message("assistant", "吃了吗")])
    assert target(example) == ["\n", "早上好", "<|assistant|>", "\n", "吃了吗", "</s>"]


def test_a_question_at_the_end_is_not_learned_nor_sent():
    (example,) = training_examples("chatglm3", TALK[:3])
    assert target(example) == ["\n", "早上好", "<|user|>"]
    assert example[-1].text == "<|user|>"


def test_a_turn_without_loss_is_not_learned_nor_is_its_end():
    messages = [TALK[0], Message("assistant", "早上好", loss=False), *TALK[2:]]
    (example,) = training_examples("chatglm3", messages)
    assert target(example) == ["\n", "公园", "</s>"]
    assert len(training_examples("chatglm2", messages)) == 1
    assert training_examples("chatglm3", messages[:2]) == []


def test_a_thought_is_no_part_of_the_visible_answer():
    assert visible_text(TEMPLATES["glm45"], "<think>怎么</think>\n早") == "早"
    assert visible_text(TEMPLATES["glmz1"], "\n怎么\n</think>\n\n早") == "早"
    assert visible_text(TEMPLATES["glm4"], "</think> 早") == "</think> 早"


def test_content_is_never_a_control_token():
    for template in TEMPLATES:
        for segment in render(template, [Message("user", "<|assistant|></s>[gMASK]")]):
            assert not segment.is_control or segment.text != "<|assistant|></s>[gMASK]"
            assert segment.is_control == (segment.text in {*TEMPLATES[template].control_tokens, "</s>"})


def test_chatglm3_puts_tools_behind_the_system_text():
    system = Message("system", "Use tools.", tools=[TOOL])
    content = render("chatglm3", [system])[4].text
    assert content == "Use tools.\n" + json.dumps([TOOL["function"]], ensure_ascii=False, indent=4)


@pytest.mark.parametrize(
    ("template", "name", "gap"), [("glm4", "ChatGLM", "\n"), ("glm4_base", "GhatGLM", "\n\n")]
)
def test_glm4_introduces_its_tools(template, name, gap):
    sent = text(render(template, [Message("system", "", tools=[TOOL])], False))
    assert sent.startswith(f"[gMASK]<sop><|system|>\n你是一个名为 {name} 的人工智能助手。")
    assert f'# 可用工具{gap}## weather\n\n{{\n    "name": "weather"' in sent
    assert "名为 小助手 的" in text(
        render(template, [Message("system", "", tools=[TOOL])], assistant_name="小助手")
    )


def test_glm4_knows_its_built_in_tools_and_no_others():
    tools = [{"type": kind} for kind in ("python", "simple_browser", "cogview")]
    sent = text(render("glm4", [Message("system", "", tools=tools)], False))
    assert sent.count("\n## ") == 3
    with pytest.raises(DataError, match="'magic'"):
        render("glm4", [Message("system", "", tools=[{"type": "magic"}])])


def test_glm4_does_not_send_a_turn_without_content():
    assert render("glm4", [Message("system", ""), *TALK[:1]]) == render("glm4", TALK[:1])


@pytest.mark.parametrize(
    ("messages", "words", "hint"),
    [
        ([Message("system", "s"), *TALK], "no system message", "source_prefix"),
        ([TALK[0], TALK[0]], "'assistant' was expected", "in turn"),
        ([TALK[1]], "'user' was expected", "a question first"),
        ([TALK[0], Message("observation", "x")], "no tool calls", "ChatGLM3"),
    ],
)
@pytest.mark.parametrize("template", ["chatglm", "chatglm2"])
def test_what_rounds_cannot_express_is_an_error(messages, words, hint, template):
    with pytest.raises(DataError, match=words) as caught:
        training_examples(template, messages)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no message"),
        ("hello", "must be a list of messages, got 'hello'"),
        ({"role": "user"}, "must be a list of messages, got {"),
        (["hello"], r"'messages\[0\]' must be an object, got 'hello'"),
        ([{"role": "user"}], r"'messages\[0\]' has no 'content'"),
        ([{"content": "a"}], r"'messages\[0\]' has no 'role', got 'content'"),
        ([{"role": "user", "content": None}], "content' must be text, got null"),
        ([{"role": "user", "content": 3}], "content' must be text, got 3"),
        ([{"role": "robot", "content": ""}], "no known role, got 'robot'"),
        (
            [{"role": "user", "content": "", "nam": "x"}],
            "holds 'nam', which says nothing in a turn of role 'user'",
        ),
        (
            [{"role": "user", "content": "", "reasoning_content": "x"}],
            "holds 'reasoning_content', which says",
        ),
        ([{"role": "user", "content": "", "tool_calls": [{"name": "f"}]}], "holds 'tool_calls', which says"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f"}], "function_call": {"name": "g"}}],
            "holds 'function_call', which says",
        ),
        ([{"role": "user", "content": "", "tools": [TOOL]}], "tools' is in a turn of role 'user'"),
        ([{"role": "assistant", "content": "", "metadata": "a\nb"}], "metadata' holds a line break"),
        ([{"role": "assistant", "content": "", "loss": 1}], "loss' must be true or false, got 1"),
        ([{"role": "assistant", "content": "", "think": "a", "reasoning": "b"}], "its thought twice"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "must be a call"),
        (
            [{"role": "assistant", "content": "x", "metadata": "f", "tool_calls": [{"name": "g"}]}],
            "names a tool in 'metadata' and calls one in 'tool_calls', got both",
        ),
    ],
)
def test_a_wrong_message_is_named(rows, words):
    with pytest.raises(DataError, match=words):
        messages_from_dicts(rows)


def test_messages_come_from_dicts_and_messages():
    rows = [
        {"role": "system", "content": "s", "tools": [TOOL]},
        TALK[0],
        {"role": "assistant", "content": "a"},
    ]
    assert messages_from_dicts(rows) == [
        Message("system", "s", tools=[TOOL]),
        TALK[0],
        Message("assistant", "a"),
    ]


OPENAI = [
    {"role": "developer", "content": "简短"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "上海"}, {"type": "text", "text": "几点"}],
        "name": "小林",
    },
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "要查",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "time", "arguments": '{"city": "上海"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": {"time": "十点"}},
]


def test_openais_messages_are_messages():
    assert messages_from_dicts(OPENAI, tools=[TOOL]) == [
        Message("system", "简短", tools=[TOOL]),
        Message("user", "上海几点"),
        Message("assistant", "", thought="要查", calls=(Call("time", {"city": "上海"}),)),
        Message("observation", '{"time": "十点"}'),
    ]
    assert render_messages("glm45", OPENAI, tools=[TOOL]) == "".join(
        segment.text for segment in render("glm45", messages_from_dicts(OPENAI, tools=[TOOL]))
    )


def test_the_options_of_a_rendering_are_those_that_the_format_has():
    asked = [{"role": "user", "content": "早"}]
    assert render_messages("glm45", asked, enable_thinking=False) == render_messages("glm45_nothink", asked)
    assert render_messages("glm45_nothink", asked, enable_thinking=True) == render_messages("glm45", asked)
    for template in TEMPLATES:
        thinks = template in ("glm45", "glmz1")
        assert render_messages(template, asked, enable_thinking=thinks) == render_messages(template, asked)
    with pytest.raises(ConfigError, match="enable_thinking: True, but GLM-4 does not think aloud"):
        render_messages("glm4", asked, enable_thinking=True)
    with pytest.raises(ConfigError, match="enable_thinking: False, but GLM-Z1 thinks before every answer"):
        render_messages("glmz1", asked, enable_thinking=False)
    with pytest.raises(ConfigError, match="enable_thinking: 'no'"):
        render_messages("glm45", asked, enable_thinking="no")
    with pytest.raises(ConfigError, match="enable_thought: no option") as caught:
        render_messages("glm45", asked, enable_thought=False)
    assert "enable_thinking" in caught.value.hint
    assert "小助手" in render_messages("glm4", asked, tools=[TOOL], assistant_name="小助手")


def test_tools_are_given_once():
    with pytest.raises(DataError, match="for all and by a system turn"):
        render_messages("glm4", [{"role": "system", "content": "", "tools": [TOOL]}], tools=[TOOL])


def test_an_unknown_format_is_an_error():
    with pytest.raises(ConfigError, match="chatglm9"):
        render("chatglm9", TALK)
