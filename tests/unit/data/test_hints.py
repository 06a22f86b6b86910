"""Files as users have them: each is read right, or its hint, followed to the letter, leads to the right rows.

A hint's settings are taken out of its text; a form that it shows is followed by the function beside it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from glmtune.data.reader import read_dataset
from glmtune.errors import DataError
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data

Rows = list[dict[str, Any]]
DAYS, MONTHS = ("一周有几天？", "七天。"), ("一年有几个月？", "十二个月。")
PAIR = {"prompt": DAYS[0], "response": DAYS[1]}
TALK = [{"role": "user", "content": DAYS[0]}, {"role": "assistant", "content": DAYS[1]}]
SHARE = [{"from": "human", "value": DAYS[0]}, {"from": "gpt", "value": DAYS[1]}]
REVIEWS = ("房间干净，服务员热情。", "隔音不好，早餐难吃，不会再来。", "很满意，下次还来住。")
LABELLED = [(review, label) for review, label in zip(REVIEWS, "101", strict=True)]
BAD = "不知道。"
SETTING = re.compile(r"'(data\.\w+=[^']+)'|(data\.\w+=[^\s;,']+)")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(*records: tuple[str, ...], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(records)
    return file.getvalue()


def words_of(hint: str, way: int = 0) -> list[str]:
    """Return the settings that a hint names, without the quotes of the shell; of several ways one."""
    ways = re.split("; or,? |; if it is none", hint)
    return [quoted or plain for quoted, plain in SETTING.findall(ways[way])]


def said(name: str, words: list[str]) -> list[tuple[str, ...]]:
    dataset = read_dataset(Path(name), load_recipe({"model": "m"}, words).data)
    return [tuple(message.content for message in example.messages) for example in dataset.examples]


# Read as they are


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", b"\xef\xbb\xbf" + table(("prompt", "response"), DAYS).encode()),
        ("excel_quoted.csv", '\ufeff"prompt","response"\r\n"一周有几天？","七天。"\r\n'.encode()),
        ("excel_text.txt", table(("prompt", "response"), DAYS, delimiter="\t").encode("utf-16")),
        ("german.csv", table(("prompt", "response"), DAYS, delimiter=";").encode()),
        ("sep.csv", b"sep=;\r\n" + table(("prompt", "response"), DAYS, delimiter=";").encode()),
        ("tabs.csv", table(("prompt", "response"), DAYS, delimiter="\t").encode()),
        ("spaced.csv", 'prompt, response\n"一周有几天？", "七天。"\n'.encode()),
        ("spaced_names.csv", "prompt ,response \n一周有几天？,七天。\n".encode()),
        ("quoted_names.csv", '"prompt","a;b;c",response\n一周有几天？,,七天。\n'.encode()),
        ("one.json", json.dumps(PAIR).encode()),
        ("empty_columns.csv", "prompt,response,,\n一周有几天？,七天。,,\n".encode()),
        ("empty_lines.csv", ",\nprompt,response\n一周有几天？,七天。\n,\n".encode()),
        ("marked.jsonl", b"\xef\xbb\xbf" * 2 + lines(PAIR).encode()),
        ("rows.txt", lines(PAIR).encode()),
    ],
)
def test_a_file_as_programs_write_it_is_read(name, content):
    Path(name).write_bytes(content)
    assert said(name, []) == [DAYS]


def test_files_with_marks_put_one_behind_the_other_are_read():
    Path("a.jsonl").write_text(f"\ufeff{lines(PAIR)}\ufeff{lines(PAIR)}", encoding="utf-8")
    assert said("a.jsonl", []) == [DAYS, DAYS]


def test_a_space_in_front_of_a_cell_stays_where_the_header_has_none():
    Path("a.csv").write_text("prompt,response\na, b\n", encoding="utf-8")
    assert said("a.csv", []) == [("a", " b")]


def test_a_place_in_a_file_that_names_its_delimiter_is_the_line_of_the_file():
    Path("a.csv").write_text("sep=;\nprompt;response\na;b\nc; \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:4: 'response' must be non-empty"):
        said("a.csv", [])


TOLD = "taken as question and answer: {} and {} (others: data.prompt_column, data.response_column)"


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("q.jsonl", lines({"a": DAYS[1], "q": DAYS[0]}), TOLD.format("'q'", "'a'")),
        ("cn.csv", table(("编号", "问题", "答案"), ("", *DAYS)), TOLD.format("'问题'", "'答案'")),
        ("cn2.csv", table(("问题", "回答"), DAYS), TOLD.format("'问题'", "'回答'")),
        ("case.csv", table(("Question ", "ANSWER"), DAYS), TOLD.format("'Question'", "'ANSWER'")),
        ("dolly.jsonl", lines({"instruction": DAYS[0], "response": DAYS[1]}), "'instruction' and 'response'"),
        ("data.json", json.dumps({"version": "1", "data": [PAIR]}), "its rows are the list under 'data'"),
        ("indent.json", json.dumps({"data": [PAIR]}, indent=2), "its rows are the list under 'data'"),
        ("number.jsonl", lines({**PAIR, "output": 1}), "columns that nobody reads: 'output' (1 row)"),
    ],
)  # fmt: skip
def test_rows_that_leave_no_doubt_are_read_and_told(name, content, note):
    Path(name).write_text(content, encoding="utf-8")
    assert said(name, []) == [DAYS]
    assert any(note in line for line in read_dataset(Path(name), Data()).notes())


def test_capital_letters_make_an_instruction_no_other():
    Path("a.jsonl").write_text(lines({"Instruction": "答", "Input": DAYS[0], "Output": DAYS[1]}), "utf-8")
    assert said("a.jsonl", []) == [(f"答\n{DAYS[0]}", DAYS[1])]


@pytest.mark.parametrize(
    "row",
    [{"问题": "a", "答案": "b", "回答": "c"}, {"Question": "a", "question": "b", "Answer": "c"}],
)
def test_names_that_leave_a_doubt_are_asked_for(row):
    Path("a.jsonl").write_text(lines(row), encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot tell|is missing"):
        said("a.jsonl", [])


def test_the_columns_of_rows_in_an_object_are_named_as_of_any_other():
    Path("a.json").write_text(json.dumps({"v": 1, "data": [{"ask": "a", "reply": "b"}]}), encoding="utf-8")
    with pytest.raises(DataError, match=r"^a\.json:1 \(data\[0\]\): cannot tell the format") as caught:
        said("a.json", [])
    assert said("a.json", words_of(caught.value.hint)) == [("a", "b")]


@pytest.mark.parametrize("row", [{"ask": "a", "tools": [{"name": "f"}]}, {"a": [{"x": 1}], "b": [{"x": 1}]}])
def test_a_list_that_is_no_list_of_rows_is_a_cell(row):
    Path("a.json").write_text(lines(row), encoding="utf-8")
    with pytest.raises(DataError, match=r"^a\.json:1: "):
        said("a.json", [])


def test_numbers_true_and_false_are_read_as_json_spells_them():
    labels = [1, 0.5, True, 10**400]
    Path("a.jsonl").write_text(lines(*({"text": "x", "label": label} for label in labels)), "utf-8")
    words = ["data.prompt_column=text", "data.response_column=label"]
    assert said("a.jsonl", words) == [("x", json.dumps(label)) for label in labels]
    dataset = read_dataset(Path("a.jsonl"), load_recipe({"model": "m"}, words).data)
    assert dataset.notes() == ["cells that hold a number, true or false, read as text: 'label' (4 rows)"]


def test_a_file_that_is_not_there_is_answered_with_those_that_are_and_a_pattern_with_those_not_empty():
    for name, content in (("a.csv", ""), ("b.json", lines(PAIR)), ("c.json", lines(PAIR)), ("d.json", "")):
        Path(name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        said("nosuch.json", [])
    assert (
        caught.value.hint == "there is no such file in .; files of rows there: b.json, c.json, d.json, a.csv"
    )
    with pytest.raises(DataError) as caught:
        said("*.json", [])
    assert "`glmtune data convert b.json c.json all.jsonl --to messages`" in caught.value.hint


# Refused, with a hint that works


class Odd(NamedTuple):
    """A file, words of its error and of its hint, what follows the hint's form, and the rows that come."""

    name: str
    content: str | bytes
    error: str
    hint: str = ""
    follow: Callable[[str], str] | None = None
    rows: Sequence[tuple[str, ...]] = (DAYS,)
    way: int = 0
    to: str = ""
    """The file that a hint has written, if another."""


def replaced(one: str, other: str) -> Callable[[str], str]:
    return lambda text: text.replace(one, other)


def loaded(change: Callable[[Any], object]) -> Callable[[str], str]:
    """Return a function that changes the rows of JSON lines, one by one."""
    return lambda text: lines(*(change(json.loads(line)) for line in text.splitlines()))


ODD = [
    # which column is which
    Odd(
        "label.csv",
        table(("label", "review"), *((b, a) for a, b in LABELLED)),
        "cannot tell the format",
        "data.prompt_column=review data.response_column=label",
        rows=LABELLED,
    ),
    Odd(
        "unnamed_label.csv",
        table(("y", "x"), *((b, a) for a, b in LABELLED * 2)),
        "cannot tell the format",
        "data.prompt_column=x data.response_column=y",
        rows=LABELLED * 2,
        way=1,
    ),
    Odd("rounds.jsonl", lines({"assistant": DAYS[1], "user": DAYS[0]}), "cannot tell the format"),
    Odd("io.jsonl", lines({"output": DAYS[1], "input": DAYS[0]}), "cannot tell the format"),
    Odd("two.jsonl", lines({"x": DAYS[0], "y": DAYS[1]}), "cannot tell the format"),
    Odd(
        "no_names.csv",
        table(MONTHS, DAYS),
        "cannot tell the format",
        "put names above line 1",
        lambda text: "prompt,response\n" + text,
        [MONTHS, DAYS],
    ),
    Odd(
        "no_answer.jsonl",
        lines({"instruction": "a", "input": "b"}),
        "cannot tell the format",
        '{"prompt": "...", "response": "..."}',
        lambda _: lines(PAIR),
    ),
    # turns
    Odd(
        "turns.jsonl",
        lines(*TALK),
        "a row is one turn of a dialogue",
        '{"messages": [...]}',
        lambda text: lines({"messages": [json.loads(line) for line in text.splitlines()]}),
    ),
    Odd(
        "turns.csv",
        table(("from", "value"), ("human", DAYS[0]), ("gpt", DAYS[1])),
        "a row is one turn of a dialogue",
        '{"conversations": [...]}',
        lambda _: lines({"conversations": SHARE}),
        to="turns.jsonl",
    ),
    Odd(
        "listtop.jsonl",
        lines(TALK, TALK),
        "text after the array's end",
        '{"messages": [...]}',
        loaded(lambda turns: {"messages": turns}),
        [DAYS, DAYS],
    ),
    Odd(
        "listtop.json",
        json.dumps([SHARE, SHARE]),
        "a row must be an object",
        '{"conversations": [...]}',
        lambda text: lines(*({"conversations": turns} for turns in json.loads(text))),
        [DAYS, DAYS],
    ),
    Odd(
        "conversation.json",
        json.dumps({"conversation": TALK}),
        "the turns of a dialogue stand in 'conversation'",
        "rename the column 'conversation' to 'messages'",
        replaced('"conversation"', '"messages"'),
    ),
    Odd(
        "pretty.json",
        json.dumps({"dialog": SHARE}, indent=1),
        "an object spread over several lines",
        "write one row a line",
        lambda text: lines(json.loads(text.replace("dialog", "conversations"))),
    ),
    Odd(
        "message.jsonl",
        lines({"message": TALK}),
        "the turns of a dialogue stand in 'message'",
        "rename the column 'message' to 'messages'",
        replaced('"message"', '"messages"'),
    ),
    Odd(
        "no_turns.jsonl",
        lines({"conversation": 7}),
        "column 'conversations' is missing",
        "did you mean 'conversation'? Rename it",
        lambda _: lines({"conversations": SHARE}),
    ),
    Odd(
        "dialog.jsonl",
        lines({"dialog": SHARE, "id": 1}, {"dialog": SHARE, "id": 2}),
        "the turns of a dialogue stand in 'dialog'",
        "to 'conversations'",
        replaced('"dialog"', '"conversations"'),
        [DAYS, DAYS],
    ),
    Odd(
        "dialog.csv",
        table(("dialog",), (json.dumps(TALK),)).replace("dialog", "id,dialog").replace('"[', '1,"['),
        "the turns of a dialogue stand in 'dialog'",
        "to 'messages'",
        replaced("dialog", "messages"),
    ),
    Odd(
        "chatml.txt",
        f"<|im_start|>user\n{DAYS[0]}<|im_end|>\n",
        "neither JSON nor a CSV header",
        '{"messages": [',
        lambda _: lines({"messages": TALK}),
    ),
    Odd(
        "marks.jsonl",
        lines({"text": f"[gMASK]<sop><|user|>\n{DAYS[0]}<|assistant|>\n{DAYS[1]}"}),
        "cannot tell the format",
        '{"messages": [',
        lambda _: lines({"messages": TALK}),
    ),
    # answers that are compared or marked
    Odd("dpo.jsonl", lines({"prompt": DAYS[0], "chosen": DAYS[1], "rejected": BAD}), "as for DPO"),
    Odd(
        "dpo_input.jsonl",
        lines({"instruction": "答", "input": DAYS[0], "chosen": DAYS[1], "rejected": BAD}),
        "as for DPO",
        "data.input_column=input",
        rows=[(f"答\n{DAYS[0]}", DAYS[1])],
    ),
    Odd("dpo_twice.jsonl", lines({**PAIR, "chosen": DAYS[1], "rejected": BAD}), "as for DPO", rows=[DAYS]),
    Odd(
        "dpo_named.csv",
        table(("question", "response_chosen", "response_rejected"), (*DAYS, BAD)),
        "as for DPO",
    ),
    Odd(
        "dpo_turns.jsonl",
        lines({"chosen": TALK, "rejected": [TALK[0], {**TALK[1], "content": BAD}]}),
        "as for DPO",
        "rename 'chosen' to 'messages'",
        replaced('"chosen"', '"messages"'),
    ),
    Odd(
        "dpo_last.jsonl",
        lines({"conversations": SHARE[:1], "chosen": SHARE[1], "rejected": SHARE[1]}),
        "as for DPO",
        "put what 'chosen' holds behind the turns in 'conversations'",
        loaded(lambda row: {**row, "conversations": [*row["conversations"], row["chosen"]]}),
    ),
    Odd(
        "reward.jsonl",
        lines({"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"}),
        "as for DPO",
        '{"prompt": "...", "response": "..."}',
        lambda _: lines(PAIR),
    ),
    Odd(
        "answers.jsonl",
        lines({"instruction": DAYS[0], "output": [DAYS[1], BAD]}),
        "'output' must be text",
        "of several, each in a row of its own",
        loaded(lambda row: {**row, "output": row["output"][0]}),
    ),
    Odd(
        "kto.jsonl",
        lines({**PAIR, "label": True}, {**PAIR, "response": BAD, "label": False}),
        "as for KTO, and 1 of 2 are false",
        "take out the rows whose 'label' is false",
        lambda text: text.splitlines()[0],
    ),
    Odd(
        "kto.csv",
        table(("prompt", "completion", "label"), (*DAYS, "True"), (DAYS[0], BAD, "False")),
        "as for KTO, and 1 of 2 are false",
        "data.ignore_columns=label",
        rows=[DAYS, (DAYS[0], BAD)],
        way=1,
    ),
    Odd(
        "text.jsonl",
        lines({"text": DAYS[1], "url": "x"}),
        "cannot tell the format",
        "as for pretraining",
        lambda _: lines(PAIR),
    ),
    # cells
    *(
        Odd(f"nan_{name}.jsonl", lines({**PAIR, name: float("nan")}), f"'{name}' must be", hint, follow)
        for name, hint, follow in (
            ("system", 'write ""', replaced("NaN", '""')),
            ("response", "remove the row", lambda text: lines(PAIR)),
        )
    ),
    Odd(
        "null.jsonl",
        lines({**PAIR, "prompt": None}),
        "'prompt' must be text",
        'write ""',
        replaced("null", '""'),
        [("", DAYS[1])],
    ),
    # JSON that is none, or not of rows
    Odd(
        "columns.json",
        json.dumps({"prompt": [DAYS[0], MONTHS[0]], "response": [DAYS[1], MONTHS[1]]}),
        "a table column by column",
        "orient='records', lines=True",
        lambda text: lines(
            *({"prompt": q, "response": a} for q, a in zip(*json.loads(text).values(), strict=True))
        ),
        [DAYS, MONTHS],
    ),
    Odd(
        "pandas.json",
        json.dumps({"prompt": {"0": DAYS[0]}, "response": {"0": DAYS[1]}}),
        "a table column by column",
        "orient='records', lines=True",
        lambda _: lines(PAIR),
    ),
    Odd(
        "map.json",
        json.dumps(dict([DAYS, MONTHS]), ensure_ascii=False),
        "cannot tell the format",
        "if each name is a question",
        loaded(lambda row: PAIR),
    ),
    Odd(
        "lists.jsonl",
        lines([*DAYS], [*MONTHS]),
        "text after the array's end",
        "write each line as a row",
        loaded(lambda cells: {"prompt": cells[0], "response": cells[1]}),
        [DAYS, MONTHS],
    ),
    Odd(
        "python.jsonl",
        f"{PAIR}\n",
        "a single quote '",
        "json.dumps(row, ensure_ascii=False)",
        lambda _: lines(PAIR),
    ),
    Odd(
        "none.jsonl",
        lines(PAIR).replace("}", ', "history": None}'),
        "broken JSON: expecting value",
        "JSON writes null",
        replaced("None", "null"),
    ),
    Odd(
        "comma.jsonl",
        lines(PAIR).replace("}", ",}"),
        "broken JSON",
        "remove the comma before }",
        replaced(",}", "}"),
    ),
    Odd(
        "comment.jsonl",
        "// mine\n" + lines(PAIR),
        "broken JSON",
        "remove the line",
        replaced("// mine\n", ""),
    ),
    Odd(
        "joined.json",
        lines(PAIR).strip() * 2,
        "text after the row's end",
        "write one row a line",
        replaced("}{", "}\n{"),
        [DAYS, DAYS],
    ),
    Odd(
        "inside.jsonl",
        lines({"id": 1, "data": PAIR}, {"id": 2, "data": PAIR}),
        "the columns 'prompt' and 'response' stand inside 'data'",
        "write the object under 'data' as the row itself",
        loaded(lambda row: row["data"]),
        [DAYS, DAYS],
    ),
    Odd(
        "cut.jsonl",
        lines(PAIR) + '{"prompt": "a", "resp',
        "broken JSON: unterminated string",
        "close the text with a quote",
        lambda text: text.splitlines()[0],
    ),
    Odd(
        "path.jsonl",
        r'{"prompt": "C:\data", "response": "七天。"}' + "\n",
        "broken JSON",
        r"write a backslash as \\",
        replaced("\\", "\\\\"),
        [(r"C:\data", "七天。")],
    ),
    Odd(
        "cut_between.jsonl",
        lines(PAIR) + '{"prompt": "a",',
        "at the end of the line",
        "complete it, or remove it",
        lambda text: text.splitlines()[0],
    ),
    # CSV
    Odd(
        "title.csv",
        "我的数据,\n" + table(("prompt", "response"), DAYS),
        "a header that names one column of 2: '我的数据'",
        "remove the lines above the names",
        replaced("我的数据,\n", ""),
    ),
    Odd(
        "word.csv",
        "“prompt”,“response”\n“一周有几天？”,“七天。”\n",
        "a curly quote where CSV needs a straight one",
        'replace those around names and cells by "',
        lambda text: re.sub("[“”]", '"', text),
    ),
    Odd(
        "wide.csv",
        "prompt，response\n一周有几天？，七天。\n",
        "neither JSON nor a CSV header",
        "replace each ，",
        replaced("，", ","),
    ),
    # no rows at all
    Odd(
        "prose.txt",
        "The weather is nice, and we go out.\nIt rains, again.\n",
        "neither JSON nor a CSV header",
        '{"prompt": "...", "response": "..."}',
        lambda _: lines(PAIR),
    ),
    Odd(
        "page.json",
        "<!DOCTYPE html>\n<html></html>",
        "is a web page",
        "download the file itself",
        lambda _: lines(PAIR),
    ),
    Odd(
        "header.csv",
        "prompt,response\n",
        "holds no rows",
        "write one row",
        lambda text: text + ",".join(DAYS),
    ),
    # character sets
    *(
        Odd(
            f"{codec}.csv",
            table(("prompt", "response"), ("早上好，三天？", "好的，可以。")).encode(codec),
            "UTF-",
            f"data.charset={found}",
            rows=[("早上好，三天？", "好的，可以。")],
        )
        for codec, found in (("gbk", "gb18030"), ("big5", "big5"), ("utf-16-le", "utf-16-le"))
    ),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_the_hint_followed_to_the_letter_leads_to_the_right_rows(odd):
    content = odd.content if isinstance(odd.content, bytes) else odd.content.encode()
    Path(odd.name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_dataset(Path(odd.name), Data())
    assert odd.error in str(caught.value)
    assert odd.hint in caught.value.hint
    words = words_of(caught.value.hint, odd.way)
    assert words or odd.follow
    name = odd.to or odd.name
    if odd.follow:
        Path(name).write_text(odd.follow(content.decode()), encoding="utf-8")
    assert followed(name, words) == [*odd.rows]


def followed(name: str, words: list[str]) -> list[tuple[str, ...]]:
    """Return the rows, after one more hint if it takes one."""
    try:
        return said(name, words)
    except DataError as err:
        return said(name, [*words, *words_of(err.hint)[:1]])
