"""Every key of a row is accounted for: it is read, or named and counted, or an error."""

import json
from pathlib import Path

import pytest

from glmtune.data.reader import Dataset, read_dataset
from glmtune.errors import DataError
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data

TALK = [{"role": "user", "content": "几点了？"}, {"role": "assistant", "content": "九点。"}]
PAIR = {"prompt": "几点了？", "response": "九点。"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(*rows: object, **settings: object) -> Dataset:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path("a.jsonl").write_text(lines, encoding="utf-8")
    return read_dataset(Path("a.jsonl"), Data(**settings))


def said(dataset: Dataset) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in example.messages] for example in dataset.examples]


def refusal(*rows: object, **settings: object) -> DataError:
    with pytest.raises(DataError) as caught:
        read(*rows, **settings)
    assert caught.value.hint
    return caught.value


def follow(hint: str) -> list[Data]:
    """Return the settings that a hint names, one for each way out."""
    words = [word.split(" ")[0].strip("';,") for word in hint.split("data.")[1:]]
    return [load_recipe({"model": "m"}, [f"data.{word}"]).data for word in words]


FORMS = {
    "pair": PAIR,
    "alpaca": {"instruction": "几点了？", "output": "九点。"},
    "messages": {"messages": TALK},
    "sharegpt": {"conversations": [{"from": "human", "value": "早"}, {"from": "gpt", "value": "早上好"}]},
    "chatglm3": {"conversations": TALK},
    "firefly": {"conversation": [{"human": "早", "assistant": "早上好"}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_that_nobody_reads_are_named_with_the_rows_that_fill_them(form):
    filled = {**FORMS[form], "id": 0, "category": "a"}
    found = read(filled, {**filled, "category": " "}, {**FORMS[form], "id": None, "category": []})
    assert found.unread == {"id": 2, "category": 1}
    assert found.notes() == ["columns that nobody reads: 'id' (2 rows), 'category' (1)"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name",
    ["context", "images", "videos", "audios", "functions", "cot", "thought", "chat_history",
     "system_prompt", "System Prompt", "chosen", "rejected"],
)  # fmt: skip
def test_a_filled_column_that_carries_meaning_stops_the_run_until_it_is_left_out(form, name):
    row = {**FORMS[form], name: ["x"]}
    error = refusal(FORMS[form], row, {**FORMS[form], name: None}, row)
    assert str(error) == f"a.jsonl:2: columns that carry meaning, and nobody reads: {name!r} (2 rows)"
    left_out = read(row, ignore_columns=(name,))
    assert left_out.notes() == [f"columns left out by data.ignore_columns: {name!r} (1 row)"]
    assert said(left_out) == said(read(FORMS[form]))
    (*_, ignoring) = follow(error.hint)
    if " " not in name:
        assert ignoring.ignore_columns == (name,)


@pytest.mark.parametrize("name", ["tools", "input"])
def test_a_column_that_one_format_reads_stops_a_run_of_another(name):
    assert f"'{name}' (1 row)" in str(refusal({**PAIR, name: '[{"name": "f"}]'}))


@pytest.mark.parametrize(
    ("name", "cell", "messages"),
    [
        ("context", "表停了。", [("user", "几点了？\n表停了。"), ("assistant", "九点。")]),
        ("input", "表停了。", [("user", "几点了？\n表停了。"), ("assistant", "九点。")]),
        ("system_prompt", "简短。", [("system", "简短。"), ("user", "几点了？"), ("assistant", "九点。")]),
        (
            "chat_history",
            [["早", "早上好"]],
            [("user", "早"), ("assistant", "早上好"), ("user", "几点了？"), ("assistant", "九点。")],
        ),
    ],
)
def test_each_way_out_that_the_hint_says_works(name, cell, messages):
    row = {**PAIR, name: cell}
    mapped, ignoring = (read(row, **way.model_dump(exclude_unset=True)) for way in follow(refusal(row).hint))
    assert said(mapped) == [messages]
    assert mapped.unread == mapped.ignored == {}
    assert said(ignoring) == said(read(PAIR))


def test_the_functions_of_a_dialogue_are_tools_once_renamed_as_the_hint_says():
    tool = {"name": "f", "description": "d", "parameters": {}}
    assert refusal({"messages": TALK, "functions": [tool]}).hint.startswith("rename 'functions' to 'tools'; ")
    found = read({"messages": TALK, "tools": [tool]})
    assert found.examples[0].messages[0].tools
    assert found.unread == {}


def test_several_lost_columns_are_left_out_by_one_setting():
    row = {**PAIR, "context": "a", "images": ["b.png"], "带 空格 tools": "c", "tools": [{"name": "f"}]}
    error = refusal(row)
    assert "'context' (1 row), 'images' (1), 'tools' (1)" in str(error)
    assert follow(error.hint)[-1].ignore_columns == ("context", "images", "tools")
    assert refusal({**PAIR, "System Prompt": "a"}).hint.endswith(
        "'data.ignore_columns=[\"System Prompt\"]' leaves it out"
    )


@pytest.mark.parametrize("form", ["messages", "chatglm3"])
def test_a_turns_keys_are_accounted_for_like_a_rows_columns(form):
    (column,) = FORMS[form]
    user, assistant = TALK
    row = {column: [{**user, "name": "小林", "images": ["a.png"]}, {**assistant, "refusal": None, "id": 3}]}
    error = refusal(row)
    assert str(error).endswith(f"columns that carry meaning, and nobody reads: '{column}.images' (1 row)")
    found = read(row, ignore_columns=(f"{column}.images",))
    assert found.unread == {f"{column}.name": 1, f"{column}.id": 1}
    assert found.ignored == {f"{column}.images": 1}


def test_turns_in_a_cell_of_csv_are_accounted_for_too():
    turns = json.dumps([{**TALK[0], "images": ["a.png"]}, TALK[1]]).replace('"', '""')
    Path("a.csv").write_text(f'messages,tools\n"{turns}",\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:2: columns that carry meaning.*'messages.images' \(1 row\)"):
        read_dataset(Path("a.csv"), Data())


def test_what_the_settings_leave_out_decides_the_format_no_more():
    row = {**PAIR, "question": "早", "answer": "早上好"}
    error = refusal(row)
    assert "fits several formats: prompt/response and question/answer" in str(error)
    (ways,) = follow(error.hint)
    assert said(read(row, **ways.model_dump(exclude_unset=True))) == said(read(PAIR))


def test_a_named_input_beside_turns_is_refused():
    error = refusal({"messages": TALK, "context": "a"}, input_column="context")
    assert "'context' stands beside 'messages'" in str(error)


def test_a_named_input_or_system_column_must_be_there():
    for setting in ("input_column", "system_column"):
        assert "column 'about' is missing" in str(refusal(PAIR, **{setting: "about"}))


def test_rows_of_several_formats_in_one_file_are_read_each_by_its_own():
    alpaca = {"instruction": "早", "output": "早上好"}
    found = read(PAIR, alpaca, {"messages": TALK}, PAIR)
    assert found.format == "prompt_response + alpaca + messages"
    assert said(found) == [said(read(row))[0] for row in (PAIR, alpaca, {"messages": TALK}, PAIR)]


def test_a_row_that_fits_no_format_is_named_where_others_fit_some():
    assert str(refusal(PAIR, {"messages": TALK}, PAIR, {"prompt": "a"})).startswith(
        "a.jsonl:4: column 'response' is missing"
    )


def test_cells_that_spell_nothing_are_counted_and_read_as_text():
    alpaca = {"instruction": "译", "output": "x"}
    rows = [{**alpaca, "input": text} for text in ("nan", "None", "null ", "", "nano")]
    found = read(*rows)
    assert found.notes() == ["cells that spell nothing (nan, None, null), read as text: 'input' (3 rows)"]
    assert said(found)[0][0] == ("user", "译\nnan")


@pytest.mark.parametrize("column", ["instruction", "input", "output", "system"])
def test_nan_is_no_text_and_the_hint_says_what_is(column):
    row = {"instruction": "a", "input": "", "output": "b", "system": "c"}
    Path("a.jsonl").write_text(json.dumps({**row, column: float("nan")}), encoding="utf-8")
    kind = "non-empty text" if column == "output" else "text"
    with pytest.raises(DataError, match=f"a.jsonl:1: '{column}' must be {kind}, got NaN") as caught:
        read_dataset(Path("a.jsonl"), Data())
    if column == "output":
        assert "remove the row" in caught.value.hint
        return
    way_out = "; or data.empty=skip drops it" if column == "instruction" else ""
    assert caught.value.hint == 'NaN is no text: write "" for an empty cell' + way_out
    Path("a.jsonl").write_text(json.dumps({**row, column: ""}), encoding="utf-8")
    assert len(read_dataset(Path("a.jsonl"), Data()).examples) == 1


def test_a_nan_that_nobody_reads_fills_nothing():
    assert read({**PAIR, "context": float("nan"), "score": float("nan")}).notes() == []


def test_pictures_among_the_parts_of_a_turn_are_named():
    parts = [{"type": "text", "text": "看"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
    error = refusal({"messages": [{"role": "user", "content": parts}, TALK[1]]})
    assert "'messages[0].content' holds parts that are no text: image_url" in str(error)


@pytest.mark.parametrize("nothing", [{"system": None}, {"system": ""}, {}])
def test_a_null_system_text_is_none(nothing):
    assert said(read({**PAIR, **nothing})) == said(read({**nothing, "messages": TALK})) == [
        [("user", "几点了？"), ("assistant", "九点。")]
    ]  # fmt: skip
    turns = [{"role": "system", "content": None}, *TALK]
    assert said(read({"messages": turns}, {"conversations": turns}))[0][0] == ("user", "几点了？")
    shared = [{"from": "system", "value": None}, *FORMS["sharegpt"]["conversations"]]
    assert said(read({"conversations": shared}))[0][0] == ("user", "早")


# Thoughts and transcripts


CUT = "<think>一周从周一到"
OPEN = {
    "pair": {"prompt": "a", "response": CUT},
    "history": {**PAIR, "history": [["a", CUT]]},
    "messages": {"messages": [TALK[0], {"role": "assistant", "content": f"\n{CUT}"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": CUT}]},
    "firefly": {"conversation": [{"human": "a", "assistant": CUT}]},
    "a second thought": {"prompt": "a", "response": f"<think>b</think>{CUT}"},
}


@pytest.mark.parametrize("form", OPEN)
def test_a_thought_that_never_closes_is_refused_with_its_place(form):
    error = refusal(PAIR, OPEN[form], OPEN[form])
    assert str(error).startswith("a.jsonl:2: an answer's <think> never closes, got ")
    assert str(error).endswith("(and 1 more row like it)")


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("<think>a</think>b", []),
        ("a</think>b", []),
        ("a", []),
        ("写 <think> 这个词", ["answers with a <think> inside that never closes, kept: 1"]),
    ],
)
def test_closed_thoughts_and_words_about_them_are_read(answer, note):
    found = read({**PAIR, "response": answer})
    assert said(found)[0][1] == ("assistant", answer)
    assert found.notes() == note


def test_a_question_may_hold_an_open_thought():
    assert said(read({**PAIR, "prompt": CUT}))[0][0] == ("user", CUT)


@pytest.mark.parametrize("end", ["", "\nAssistant:", "\nAssistant: \n"])
def test_a_dialogue_written_as_text_is_read_as_the_hint_says(end):
    written = f"Human: 早\n  上\nAssistant：早上好！\nHuman:再见{end}"
    row = {"instruction": written, "input": "", "output": "再见！"}
    error = refusal(row)
    assert "'instruction' is a dialogue written as text" in str(error)
    turns, text = (read(row, **way.model_dump(exclude_unset=True)) for way in follow(error.hint))
    assert said(turns) == [
        [("user", "早\n  上"), ("assistant", "早上好！"), ("user", "再见"), ("assistant", "再见！")]
    ]
    assert said(text) == [[("user", written), ("assistant", "再见！")]]


@pytest.mark.parametrize(
    "question", ["Human: 早", "什么是 Human: 与\nAssistant: ？", "Assistant: a\nHuman: b"]
)
def test_a_question_about_speakers_is_a_question(question):
    assert said(read({**PAIR, "prompt": question}))[0][0] == ("user", question)


def test_a_thought_with_its_tags_is_refused():
    talk = [TALK[0], {**TALK[1], "reasoning_content": "<think>数一数</think>"}]
    assert "a thought holds <think>" in str(refusal({"messages": talk}))
