"""Rows written in another format come back as the same conversations, or the row is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.data.convert import FILES, WRITERS, convert_file
from glmtune.data.example import Example
from glmtune.data.formats import FORMATS, find_format
from glmtune.data.reader import read_dataset, read_examples
from glmtune.errors import ConfigError, DataError, OutputError
from glmtune.recipe.settings import Data
from glmtune.templates import Call, Message

DIALOGUES = [name for name, known in FORMATS.items() if known.is_dialogue and name != "firefly"]
PAIRS = [name for name in FORMATS if name not in DIALOGUES]
TEXT_FILES = [suffix for suffix in FILES if suffix != ".parquet"]
CALL = [
    {"role": "system", "content": "你是天气助手"},
    {"role": "user", "content": "明天冷吗？"},
    {"role": "assistant", "content": "我查一下。", "loss": False},
    {"role": "tool", "name": "weather", "parameters": {"日": "明天", "n": 1}, "observation": "3 度"},
    {"role": "assistant", "content": "有点冷，3 度。"},
]
TOOLS = [{"name": "weather", "description": "查天气", "parameters": {"type": "object", "properties": {}}}]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: dict) -> Path:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(name)


# Any conversation

texts = st.text().filter(lambda text: "think>" not in text)  # an open one is refused, wherever it came from
answers = texts.filter(str.strip)
names = st.from_regex(r"[a-z_]{1,8}|[一-龥]{1,3}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(texts, values, max_size=3)
tools = st.lists(
    st.builds(
        lambda name, about: {"type": "function", "function": {"name": name, "parameters": about}},
        names,
        arguments,
    ),
    min_size=1,
)


@st.composite
def called(draw: st.DrawFn) -> list[Message]:
    calls = draw(st.lists(st.builds(Call, names, arguments), min_size=1, max_size=3))
    content = draw(answers | st.just(""))
    thought = draw(st.none() | texts)
    turn = Message("assistant", content, loss=draw(st.booleans()), thought=thought, calls=tuple(calls))
    return [Message("user", draw(texts)), turn, *(Message("observation", draw(texts)) for _ in calls)]


said = st.builds(lambda text: [Message("user", text)], texts) | st.builds(
    lambda text, thought, loss: [Message("assistant", text, thought=thought, loss=loss)],
    answers,
    st.none() | texts,
    st.booleans(),
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    system = draw(st.none() | st.tuples(answers | st.just(""), st.none() | tools))
    first = [Message("system", system[0], tools=system[1])] if system and any(system) else []
    turns = [message for part in draw(st.lists(said | called(), max_size=4)) for message in part]
    return (*first, Message("user", draw(texts)), *turns, Message("assistant", draw(answers)))


@pytest.mark.parametrize("name", DIALOGUES)
@given(messages=conversations())
def test_any_conversation_comes_back_from_a_row_of_turns(name, messages):
    row = json.loads(json.dumps(WRITERS[name](messages)))
    assert find_format([row], Data())(row) == messages


@given(
    rounds=st.lists(st.tuples(texts, answers), min_size=1, max_size=3), system=st.none() | answers,
    name=st.sampled_from(PAIRS), thought=st.none() | texts,
)  # fmt: skip
def test_any_rounds_come_back_from_a_row_of_columns(rounds, system, name, thought):
    turns = [
        Message(role, text) for pair in rounds for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    turns[-1] = replace(turns[-1], thought=None if name == "firefly" else thought)
    messages = tuple(turns) if system is None else (Message("system", system), *turns)
    row = WRITERS[name](messages)
    assert find_format([row], Data())(row) == messages


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(60))
@given(
    rows=st.lists(conversations(), min_size=1, max_size=3), suffix=st.sampled_from(TEXT_FILES),
    first=st.sampled_from(DIALOGUES), second=st.sampled_from([*DIALOGUES, *PAIRS]),
)  # fmt: skip
def test_any_file_converted_twice_holds_the_same_conversations_or_names_a_row(
    rows, suffix, first, second, tmp_path
):
    source, middle, end = tmp_path / "in.jsonl", tmp_path / "middle.jsonl", tmp_path / f"end{suffix}"
    for path in (middle, end):
        path.unlink(missing_ok=True)
    write(str(source), *(WRITERS["messages"](row) for row in rows))
    convert_file([source], middle, first, Data())
    try:
        convert_file([middle], end, second, Data())
    except DataError as err:
        assert str(err).startswith(f"{middle}:")
        assert not end.exists()
        return
    assert [example.messages for example in read_examples(end, Data())] == rows


# Known rows


def test_a_call_is_written_as_each_format_writes_it():
    (example,) = read_examples(write("in.jsonl", {"conversations": CALL, "tools": TOOLS}), Data())
    sharegpt = WRITERS["sharegpt"](example.messages)
    assert sharegpt["system"] == "你是天气助手"
    assert sharegpt["conversations"][2] == {
        "from": "function_call",
        "value": '{"name": "weather", "arguments": {"日": "明天", "n": 1}}',
    }
    openai = WRITERS["messages"](example.messages)
    call = openai["messages"][3]["tool_calls"][0]
    assert call["function"] == {"name": "weather", "arguments": '{"日": "明天", "n": 1}'}
    assert openai["messages"][4] == {"role": "tool", "content": "3 度", "tool_call_id": call["id"]}
    assert openai["tools"] == [{"type": "function", "function": TOOLS[0]}]
    assert WRITERS["chatglm3"](example.messages) == {"conversations": CALL, "tools": TOOLS}


@pytest.mark.parametrize("suffix", TEXT_FILES)
def test_history_and_system_come_back_from_every_kind_of_file(suffix):
    rows = [
        {"prompt": "c", "response": 'd, "e"\n', "history": [["a", "b"]], "system": "s"},
        {"prompt": "", "response": "y"},
    ]
    source = write("in.jsonl", *rows)
    (dataset,) = convert_file([source], Path(f"out{suffix}"), "adgen", Data())
    assert read_dataset(Path(f"out{suffix}"), Data()).format == "adgen"
    assert [e.messages for e in read_examples(Path(f"out{suffix}"), Data())] == [
        e.messages for e in dataset.examples
    ]


@pytest.mark.parametrize("name", DIALOGUES)
@pytest.mark.parametrize("suffix", FILES)
def test_tools_and_calls_come_back_from_every_kind_of_file(name, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    plain = {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    source, target = write("in.jsonl", {"conversations": CALL, "tools": TOOLS}, plain), Path(f"out{suffix}")
    (dataset,) = convert_file([source], target, name, Data())
    assert [e.messages for e in read_examples(target, Data())] == [e.messages for e in dataset.examples]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([*CALL[:2], CALL[3], CALL[4]], "alpaca rows cannot hold tool calls and observations"),
        (CALL[:3], "alpaca rows cannot hold an answer that is not learned (loss: false)"),
        (
            [CALL[1], CALL[1], CALL[4]],
            "alpaca rows cannot hold a turn of role 'user' at this place (turn 2)",
        ),
    ],
)
def test_a_row_that_the_format_cannot_hold_is_named_and_nothing_is_written(messages, message):
    good = {"conversations": [CALL[1], CALL[4]]}
    source = write("in.jsonl", good, {"conversations": messages})
    with pytest.raises(DataError) as caught:
        convert_file([source], Path("out.json"), "alpaca", Data())
    assert str(caught.value) == f"in.jsonl:2: {message}"
    assert caught.value.hint == "choose another format, such as messages, sharegpt or chatglm3"
    assert [path.name for path in Path().iterdir()] == ["in.jsonl"]


def test_tools_do_not_fit_into_two_columns():
    source = write("in.jsonl", {"conversations": [CALL[1], CALL[4]], "tools": TOOLS})
    with pytest.raises(DataError, match=r"in\.jsonl:1: prompt_response rows cannot hold tools"):
        convert_file([source], Path("out.json"), "prompt_response", Data())


def test_code_for_an_interpreter_is_no_sharegpt_call():
    turn = {"role": "assistant", "metadata": "interpreter", "content": "```python\nprint(1)\n```"}
    source = write("in.jsonl", {"messages": [CALL[1], turn]})
    convert_file([source], Path("out.json"), "chatglm3", Data())
    with pytest.raises(DataError, match="sharegpt rows cannot hold a call of 'interpreter'"):
        convert_file([source], Path("out2.json"), "sharegpt", Data())


def test_nothing_is_overwritten():
    source = write("in.jsonl", {"prompt": "a", "response": "b"})
    before = Path("in.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"in\.jsonl: exists already"):
        convert_file([source], source, "alpaca", Data())
    assert Path("in.jsonl").read_bytes() == before


def test_a_cell_that_no_reader_of_csv_takes_is_refused():
    source = write("in.jsonl", {"prompt": "a", "response": "b" * 140_000})
    with pytest.raises(DataError, match="a cell of 140,000 characters, readers of CSV take at most 131,072"):
        convert_file([source], Path("out.csv"), "alpaca", Data())
    assert not list(Path().glob("*out*"))


def test_an_unknown_format_or_kind_of_file_is_refused():
    source = write("in.jsonl", {"prompt": "a", "response": "b"})
    with pytest.raises(ConfigError, match="unknown format 'sharegtp'"):
        convert_file([source], Path("out.json"), "sharegtp", Data())
    with pytest.raises(ConfigError, match=r"out\.xlsx: not a kind of file for rows"):
        convert_file([source], Path("out.xlsx"), "alpaca", Data())
    with pytest.raises(OutputError, match="there is no folder"):
        convert_file([source], Path("no/out.json"), "alpaca", Data())


def test_every_format_has_a_writer():
    assert set(WRITERS) == set(FORMATS)
    assert all(isinstance(e, Example) for e in read_examples(write("a.jsonl", WRITERS["alpaca"]((
        Message("user", "a"), Message("assistant", "b"))),), Data()))  # fmt: skip
