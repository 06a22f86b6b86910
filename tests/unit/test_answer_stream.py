"""Answers read back: what a chat format writes comes out again, however the text falls into pieces."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.conversation import answer_text
from glmtune.load import load_tokenizer
from glmtune.serve.blocks import merged
from glmtune.templates import TEMPLATES, Call, Message, Segment, render
from glmtune.templates.answer_stream import (
    AnswerPiece,
    AnswerStream,
    ArgumentsPiece,
    CallPiece,
    TextPiece,
    ThoughtPiece,
)
from glmtune.templates.calls import CodeCall, LineCall, TagCall
from glmtune.tokenizers.protocol import Tokenizer
from tiny import tiny_tokenizer

WITH_CALLS = [name for name, row in TEMPLATES.items() if row.calls]
THINKING = ("glm45", "glmz1")
MARKS = sorted({token for row in TEMPLATES.values() for token in row.control_tokens if token.startswith("<")})
QUESTION = Message("user", "天气?")
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}

Read = tuple[str, str, list[Call]]


def answer_of(template: str, message: Message) -> list[Segment]:
    """The segments that an answer adds to its prompt."""
    turns = render(template, [QUESTION, message], False)
    answer = turns[len(render(template, [QUESTION], True)) :]
    if not TEMPLATES[template].begins_thought:
        return answer
    # a prompt holds earlier answers without their thoughts, so this one is written out
    asked = render(template, [QUESTION], False)
    return [Segment(f"\n{message.thought}\n</think>\n\n"), *turns[len(asked) + 1 :]]


def tools_of(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Tools whose schemas say of each argument if it is a text, and of others nothing."""
    tools = {}
    for call in calls:
        texts = [key for key, value in call.arguments.items() if isinstance(value, str)]
        known = tools.setdefault(call.name, {})
        known.update({key: {"type": "string"} for key in texts})
    return [
        {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}
        for name, properties in tools.items()
    ]


def read(pieces: Sequence[AnswerPiece]) -> Read:
    """Thought, text and calls of an answer."""
    calls = [piece for piece in merged(pieces) if isinstance(piece, CallPiece)]
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, ThoughtPiece)),
        "".join(piece.text for piece in pieces if isinstance(piece, TextPiece)),
        [Call(call.name, json.loads(call.arguments)) for call in calls],
    )


def segments_of(tokenizer: Tokenizer, ids: Sequence[int], names: Sequence[str]) -> Iterator[Segment]:
    """The text of ids as it streams, and the control tokens of these names among them."""
    controls = {tokenizer.control_id(name): name for name in names}
    text = tokenizer.text_stream()
    for token in ids:
        if token in controls:
            yield Segment(text.finish())
            yield Segment(controls[token], is_control=True)
            text = tokenizer.text_stream()
        else:
            yield Segment(text.add(token))
    yield Segment(text.finish())


def read_ids(tokenizer: Tokenizer, ids: Sequence[int], tools: Sequence[dict[str, Any]] = ()) -> Read:
    stream = AnswerStream(tokenizer.chat_format, tools)
    return read_parts(stream, list(segments_of(tokenizer, ids, stream.control_names)))


def read_parts(stream: AnswerStream, parts: Sequence[Segment]) -> Read:
    pieces = [
        piece
        for part in parts
        for piece in (stream.add_control(part.text) if part.is_control else stream.add(part.text))
    ]
    return read([*pieces, *stream.finish()])


def cut(segments: Sequence[Segment], positions: set[int]) -> Iterator[Segment]:
    """The segments with their texts cut at positions in the whole text."""
    start = 0
    for segment in segments:
        end = start + len(segment.text)
        inside = [] if segment.is_control else sorted(p for p in positions if start < p < end)
        for first, last in zip([start, *inside], [*inside, end], strict=True):
            yield segment._replace(text=segment.text[first - start : last - start])
        start = end


def some_cuts(segments: Sequence[Segment], seed: int = 0) -> Iterator[list[Segment]]:
    """The segments whole, letter by letter, and cut at some positions."""
    every = range(sum(len(segment.text) for segment in segments))
    for positions in (set(), set(every), {p for p in every if random.Random(seed + p).random() < 0.3}):
        yield list(cut(segments, positions))


def all_cuts(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """The segments cut once, at each position."""
    for position in range(sum(len(segment.text) for segment in segments)):
        yield list(cut(segments, {position}))


characters = st.characters(exclude_categories=["Cs"])
words = st.one_of(st.sampled_from([*MARKS, "</", "```", "{", "\n", " ", '"', "\\", "tool_call("]), characters)
texts = st.lists(words, max_size=8).map("".join)
values = st.recursive(
    st.one_of(
        texts, st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=3,
)
names = st.text(st.sampled_from("aZ_9-.天气"), min_size=1, max_size=6)


@st.composite
def answers(draw: st.DrawFn, template: str) -> Message:
    """An answer with up to three calls; one name's argument is always a text, or never."""
    kinds: dict[tuple[str, str], bool] = {}
    calls = []
    for _ in range(draw(st.integers(0, 3))):
        call = Call(draw(names), draw(st.dictionaries(texts, values, max_size=2)))
        if all(
            kinds.setdefault((call.name, key), isinstance(value, str)) == isinstance(value, str)
            for key, value in call.arguments.items()
        ):
            calls.append(call)
    thought = draw(texts) if template in THINKING else ""
    text = draw(texts)
    if TEMPLATES[template].begins_thought:  # Z1 writes its thought as plain text
        thought, text = (each.replace("</think>", "") for each in (thought, text))
    return Message("assistant", text, calls=tuple(calls), thought=thought)


def expected(template: str, message: Message) -> Read:
    text = message.content.lstrip()
    thought = (message.thought or "").strip()
    return thought, text.strip() if TEMPLATES[template].thought_end else text, list(message.calls)


@pytest.mark.parametrize("streams_calls", [False, True])
@pytest.mark.parametrize("template", WITH_CALLS)
def test_an_answer_is_read_as_it_was_written_wherever_its_text_is_cut(
    template: str, streams_calls: bool
) -> None:
    @settings(max_examples=examples(120))
    @given(answers(template), st.integers(0, 99))
    def check(message: Message, seed: int) -> None:
        for parts in some_cuts(answer_of(template, message), seed):
            stream = AnswerStream(TEMPLATES[template], tools_of(message.calls), streams_calls=streams_calls)
            assert read_parts(stream, parts) == expected(template, message)
            assert stream.num_calls == len(message.calls)
            assert not stream.is_broken

    check()


@pytest.mark.parametrize("streams_calls", [False, True])
@pytest.mark.parametrize("is_spelled", [False, True])
@pytest.mark.parametrize("template", WITH_CALLS)
def test_no_position_of_a_cut_loses_a_call(template: str, is_spelled: bool, streams_calls: bool) -> None:
    calls = (Call("now", {}), Call("weather", {"city": "北京<", "days": [2]}), Call("now", {}))
    message = Message("assistant", "好 <t", calls=calls, thought="想" if template in THINKING else "")
    segments = answer_of(template, message)
    if is_spelled:
        segments = [Segment("".join(segment.text for segment in segments))]
    for parts in all_cuts(segments):
        stream = AnswerStream(
            TEMPLATES[template], tools_of(calls), is_spelled=is_spelled, streams_calls=streams_calls
        )
        assert read_parts(stream, parts) == expected(template, message)


@pytest.mark.parametrize("template", WITH_CALLS)
def test_control_tokens_that_a_text_spells_are_read_too(template: str) -> None:
    @settings(max_examples=examples(60))
    @given(answers(template), st.integers(0, 99))
    def check(message: Message, seed: int) -> None:
        segments = answer_of(template, message)
        if any(mark in segment.text for segment in segments for mark in MARKS if not segment.is_control):
            return  # nobody can tell which of them are meant
        whole = [Segment("".join(segment.text for segment in segments))]
        for parts in some_cuts(whole, seed):
            stream = AnswerStream(TEMPLATES[template], tools_of(message.calls), is_spelled=True)
            assert read_parts(stream, parts) == expected(template, message)

    check()


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_is_read_from_its_ids(template: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp(template), template)
    chat_format = TEMPLATES[template]
    said = "今天 🙂" if chat_format.begins_thought else "今天 🙂 <tool_call>\n</think>"
    calls = (Call("weather", {"city": "北京 \n</arg_value>", "days": [1, None]}), Call("now", {}))
    message = Message(
        "assistant",
        said,
        calls=calls if chat_format.calls else (),
        thought=said if template in THINKING else "",
    )
    if chat_format.calls:
        segments, tools = answer_of(template, message), tools_of(calls)
    else:
        segments, tools = [Segment(said)], []
    thought, text, read_calls = read_ids(tokenizer, tokenizer.encode_segments(segments), tools)
    want_thought, want_text, want_calls = expected(template, message)
    # sentencepiece puts a space in front of a text
    assert (thought, text.strip(), read_calls) == (want_thought, want_text.strip(), want_calls)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_of_random_ids_is_that_of_the_whole_answer(
    template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer = tiny_tokenizer(tmp_path_factory.mktemp(template), template)
    draw = random.Random(0)
    meant = {tokenizer.control_id(name) for name in AnswerStream(tokenizer.chat_format).control_names}
    for _ in range(20):
        ids = [draw.randrange(3, len(tokenizer)) for _ in range(60)]
        ids = [token for token in ids if token not in meant]
        end = tokenizer.encode_plain("</think>") if tokenizer.chat_format.begins_thought else []
        _, text, _ = read_ids(tokenizer, [*end, *ids])
        whole = tokenizer.chat_format.shown(answer_text(tokenizer, [*end, *ids]))
        assert text.strip() == whole.strip()


def plain(text: str) -> str:
    """A text without white space and without the marks that are never shown."""
    return "".join(re.sub("<think>|</think>|<[|]assistant[|]>", "", text).split())


@pytest.mark.parametrize("template", TEMPLATES)
def test_broken_answers_come_out_whole_as_text_and_alike_however_cut(template: str) -> None:
    chat_format = TEMPLATES[template]
    marks = AnswerStream(chat_format).control_names
    parts = st.one_of(
        st.sampled_from(["weather", "weath", "\n", "{", '{"city": "x"}', "}", "```python\n", "早", " "]).map(
            Segment
        ),
        st.sampled_from([Segment(mark, is_control=True) for mark in marks] or [Segment("x")]),
    )

    @settings(max_examples=examples(120))
    @given(st.lists(parts, max_size=12))
    def check(segments: list[Segment]) -> None:
        seen = [read_parts(AnswerStream(chat_format, [WEATHER]), parts) for parts in some_cuts(segments)]
        assert seen == [seen[0]] * len(seen)
        thought, text, calls = read_parts(AnswerStream(chat_format), segments)
        assert calls == []
        put_in = plain("".join(segment.text for segment in segments))
        assert sorted(plain(thought + text)) == sorted(put_in)

    check()


@pytest.mark.parametrize("template", WITH_CALLS)
def test_an_answer_that_breaks_off_loses_at_most_its_open_call(template: str) -> None:
    message = Message(
        "assistant", "好", calls=(Call("now", {}), Call("weather", {"city": "北京"})), thought=""
    )
    segments = answer_of(template, message)
    length = sum(len(segment.text) for segment in segments)
    for end in range(length):
        whole = "".join(segment.text for segment in segments)[:end]
        stream = AnswerStream(TEMPLATES[template], tools_of(message.calls), is_spelled=True)
        _, text, calls = read_parts(stream, [Segment(whole)])
        assert calls == list(message.calls)[: len(calls)]
        assert not calls or text.startswith("好")
        if "北" in whole and len(calls) < 2:
            assert "北" in text


@pytest.mark.parametrize("template", WITH_CALLS)
def test_arguments_are_given_as_they_come(template: str) -> None:
    call = Call("weather", {"city": "北京 and a long way behind it", "days": 12, "place": {"is": [1, 2]}})
    message = Message("assistant", "", calls=(call,), thought="")
    segments = answer_of(template, message)
    stream = AnswerStream(TEMPLATES[template], tools_of([call]), is_spelled=True, streams_calls=True)
    pieces = [
        piece for letter in "".join(segment.text for segment in segments) for piece in stream.add(letter)
    ]
    begun = [piece for piece in pieces if isinstance(piece, CallPiece | ArgumentsPiece)]
    # by letters, by arguments, or whole where the format writes code
    least = {LineCall: 20, TagCall: 3, CodeCall: 0}[TEMPLATES[template].calls]
    assert len(begun) >= least
    assert read([*pieces, *stream.finish()])[2] == [call]


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        ("glm4", 'weather\n{"city": "x" no'),
        ("glm4", 'weather\n{"city": "x'),
        ("glm4", 'weather\n{"city": "x", "city": "y"}'),
        ("glm4", 'weather\n{"city": "x"} and more'),
        ("glm45", "<tool_call>weather\n<arg_key>city</arg_key><arg_value>x</arg_value>no</tool_call>"),
        ("glm45", "<tool_call>weather\n<arg_key>city</arg_key><arg_value>x</arg_value>"),
        (
            "glm45",
            "<tool_call>weather\n<arg_key>city</arg_key><arg_value>x</arg_value>"
            "<arg_key>city</arg_key><arg_value>y</arg_value></tool_call>",
        ),
    ],
)
def test_a_call_that_breaks_behind_its_first_argument_is_told_as_broken(template: str, answer: str) -> None:
    stream = AnswerStream(TEMPLATES[template], [WEATHER], is_spelled=True, streams_calls=True)
    pieces = [piece for letter in answer for piece in stream.add(letter)]
    pieces += stream.finish()
    (call,) = [piece for piece in merged(pieces) if isinstance(piece, CallPiece)]
    assert call.arguments.startswith('{"city": "x')
    assert (stream.num_calls, stream.is_broken) == (0, True)


@pytest.mark.parametrize("answer", ["weather\n{", "weather\n{ no", "weather\n{}x", 'weather\n{"a": NaN'])
def test_a_call_that_breaks_before_is_text(answer: str) -> None:
    stream = AnswerStream(TEMPLATES["glm4"], [WEATHER], streams_calls=True)
    pieces = [piece for letter in answer for piece in stream.add(letter)]
    assert read([*pieces, *stream.finish()]) == ("", answer, [])
    assert not stream.is_broken


def test_only_a_tool_that_was_offered_is_called() -> None:
    stream = AnswerStream(TEMPLATES["glm4"], [WEATHER])
    assert stream.add("erase\n{}") == [TextPiece("erase\n{}")]
    stream = AnswerStream(TEMPLATES["glm4"], [WEATHER])
    assert stream.add("weather") == []
    assert stream.add("\nis fine") == [TextPiece("weather\nis fine")]


def test_text_comes_at_once_where_no_call_can_begin() -> None:
    for template in TEMPLATES:
        stream = AnswerStream(TEMPLATES[template], [WEATHER])
        if TEMPLATES[template].begins_thought:
            stream.add("</think>")
        assert stream.add("\n\n早" if template != "glm4" else "\n早") == [TextPiece("早")]
        assert stream.add("上好") == [TextPiece("上好")]


def test_a_call_of_a_thinking_model_may_follow_its_thought_at_once() -> None:
    stream = AnswerStream(TEMPLATES["glmz1"], [WEATHER])
    answer = '\n想\n</think>\n\nweather\n{"city": "x"}'
    assert read_parts(stream, [Segment(answer)]) == ("想", "", [Call("weather", {"city": "x"})])


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "5", 5),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}, "5", 5),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, "2"]}, "true", "true"),
        ({"anyOf": 3}, "true", True),
        ({}, '{"a": [1]}', {"a": [1]}),
        (None, "NaN", "NaN"),
        (None, "[1", "[1"),
        (7, "0.5", 0.5),
    ],
)
def test_the_schema_says_if_a_value_is_text(schema: object, text: str, value: object) -> None:
    tool = {"name": "f", "parameters": {"properties": {"x": schema}}}
    stream = AnswerStream(TEMPLATES["glm45"], [tool], is_spelled=True)
    answer = f"<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    ((name, arguments),) = [(call.name, call.arguments) for call in read_parts(stream, [Segment(answer)])[2]]
    assert (name, arguments) == ("f", {"x": value})


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_key>y</arg_key>\n</tool_call>",
        "<tool_call>f\n<arg_key>x</arg_key>\nno<arg_value>1</arg_value>\n</tool_call>",
        "<tool_call>f\n<arg_key>x</arg_key><arg_value>1</arg_value><arg_key>x</arg_key><arg_value>2</arg_value></tool_call>",
        "<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1",
        "<tool_call>f<tool_call>",
        "a </tool_call></think> b",
    ],
)
def test_a_broken_call_is_text_as_it_stands(answer: str) -> None:
    stream = AnswerStream(TEMPLATES["glm45"], [{"name": "f"}], is_spelled=True)
    assert read_parts(stream, [Segment(answer)]) == ("", answer, [])


def test_a_call_behind_a_broken_one_is_read() -> None:
    stream = AnswerStream(TEMPLATES["glm45"], [{"name": "f"}], is_spelled=True)
    parts = [Segment("<tool_call>f\n<arg_key>x</arg_key><arg_value>1<tool_call>f\n</tool_call>")]
    assert read_parts(stream, parts)[2] == [Call("f", {})]


@pytest.mark.parametrize(
    "arguments", ['{"a": 1, "a": 2}', '{"a": "\\ud800"}', '{"a": NaN}', "[" * 500, "{" * 500, "{", "[1]", "1"]
)
def test_arguments_that_are_no_json_object_of_unicode_are_text(arguments: str) -> None:
    stream = AnswerStream(TEMPLATES["glm4"], [WEATHER])
    assert read_parts(stream, [Segment(f"weather\n{arguments}")]) == ("", f"weather\n{arguments}", [])


def test_glm_tinys_answers_are_read() -> None:
    tokenizer = load_tokenizer("glm-tiny")
    assert read_ids(tokenizer, tokenizer.encode_plain("\n你好，世界"))[1] == "你好，世界"
