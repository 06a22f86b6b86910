"""Files become examples, or one error that names file, line and cure."""

import csv
import errno
import io
import json
import re
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import glmtune
from fuzz import examples
from glmtune.data.reader import read_dataset, read_examples, read_raw_rows
from glmtune.data.sources import read_sources
from glmtune.errors import ConfigError, DataError
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data

GOOD = '{"content": "类型#裤", "summary": "一条好裤子"}'


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(content: str | bytes, name: str = "train.jsonl") -> Path:
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(content: str | bytes, name: str = "train.jsonl", **options: object) -> list:
    return read_examples(write(content, name), Data(**options))


def refusal(content: str | bytes, name: str = "train.jsonl") -> DataError:
    with pytest.raises(DataError) as caught:
        read(content, name)
    assert caught.value.hint
    assert "\n" not in f"{caught.value}{caught.value.hint}"
    return caught.value


# What is read


def test_json_lines_and_an_array_of_the_same_rows_give_the_same_messages():
    lines, array = read(f"{GOOD}\n{GOOD}\n", "a.jsonl"), read(f"[\n{GOOD},\n{GOOD}\n]", "b.json")
    assert [e.messages for e in lines] == [e.messages for e in array]


def test_json_lines_in_a_json_file_are_told_by_content():
    assert len(read(f"{GOOD}\n{GOOD}", "train.json")) == 2


def test_an_array_in_a_jsonl_file_is_told_by_content():
    assert len(read(f"[{GOOD},{GOOD}]", "train.jsonl")) == 2


def test_csv_without_a_csv_suffix_is_told_by_content():
    assert read("content,summary\na,b\n", "train.txt")[0].messages[1].content == "b"


def test_csv_cells_may_hold_commas_quotes_and_line_breaks():
    example = read('prompt,response\n"a, ""b""","c\nd"\n', "a.csv")[0]
    assert [m.content for m in example.messages] == ['a, "b"', "c\nd"]


def test_tab_separated_values_are_read():
    assert read("prompt\tresponse\na\tb\n", "a.tsv")[0].messages[0].content == "a"


def test_digits_in_csv_are_text():
    assert read("prompt,response\n1+1,2\n", "a.csv")[0].messages[1].content == "2"


def test_windows_line_ends_and_blank_lines_change_nothing():
    assert [e.where for e in read(f"{GOOD}\r\n\r\n{GOOD}\r\n")] == ["train.jsonl:1", "train.jsonl:3"]


def test_a_unicode_line_separator_inside_text_ends_no_line():
    assert len(read('{"prompt": "a\u2028b", "response": "c\x85d"}')) == 1


def test_places_in_an_array_are_the_line_of_the_brace_and_the_row_number():
    pretty = json.dumps([{"prompt": "a", "response": "b"}] * 2, indent=2)
    assert [e.where for e in read(pretty, "a.json")] == ["a.json:2 (row 1)", "a.json:6 (row 2)"]


def test_places_in_csv_are_the_first_line_of_the_record():
    text = 'prompt,response\n"a\nb",c\nd,e\n'
    assert [e.where for e in read(text, "a.csv")] == ["a.csv:2", "a.csv:4"]


row = st.fixed_dictionaries({"prompt": st.text(), "response": st.text().filter(str.strip)})


@settings(max_examples=50, deadline=None)
@given(st.lists(row, min_size=1, max_size=5), st.booleans(), st.sampled_from([None, 2]))
def test_whatever_json_wrote_is_read_back_with_the_right_lines(rows, is_ascii, indent):
    array = json.dumps(rows, ensure_ascii=is_ascii, indent=indent)
    lines = "\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in rows)
    for text, name in ((array, "a.json"), (lines, "a.jsonl")):
        found = read_raw_rows(write(text, name))
        assert [r.value for r in found] == rows
        for r in found:
            line = int(r.where.split(":")[1].split(" ")[0])
            assert "{" in text.split("\n")[line - 1]


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\ab“”\n1 ', max_size=40).map(str.encode))
def test_any_bytes_give_rows_or_a_data_error(content):
    try:
        read_examples(write(content), Data())
    except DataError as err:
        assert err.hint


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"content": "a", "summary": " "}', "'summary' must be non-empty text, got ' '"),
        ('{"content": "a", "summary": [95]}', "'summary' must be text, got [95]"),
        (
            '{"content": "a", "sumary": "b"}',
            "column 'summary' is missing; columns found: 'content', 'sumary'",
        ),
        ("[1]", "a row must be an object with named columns, got [1]"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(text, message):
    assert str(refusal(f"{GOOD}\n{text}")) == f"train.jsonl:2: {message}"


def test_a_bad_row_of_an_array_is_named_by_line_and_row_number():
    text = f'[\n\n{GOOD},\n\n{{"content": "a",\n"summary": ""}}]'
    assert str(refusal(text, "a.json")).startswith("a.json:5 (row 2): 'summary' must be")


def test_further_rows_with_the_same_fault_are_counted():
    rows = [GOOD, *('{"content": "a", "summary": ""}', '{"content": "a", "summary": " "}') * 2]
    assert str(refusal("\n".join(rows))).endswith("got '' (and 3 more rows like it)")


def test_rows_with_another_fault_are_not_counted_as_like_it():
    error = refusal('{"content": "a", "summary": ""}\n{"content": "a", "summary": 1}\n' + GOOD)
    assert "more row" not in str(error)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{“content”: “a”}", 'column 2: broken JSON: a curly quote “ where JSON needs a straight "'),
        ('{"content”: "a", "summary": "b"}', "column 10: broken JSON: a curly quote ”"),
        ('{"content": “a", "summary": "b"}', "column 13: broken JSON: a curly quote “"),
        ('{"content": "a", "summary": "b”}', "column 31: broken JSON: a curly quote ”"),
        ("{'content': 'a'}", "column 2: broken JSON: a single quote ' where JSON needs a double \""),
        ('{"content": "a"， "summary": "b"}', "column 16: broken JSON: a full-width comma"),
        ('{"content"： "a"}', "column 11: broken JSON: a full-width colon"),
        (f" \ufeff{GOOD}", "column 2: broken JSON: a byte-order mark (BOM) inside the file"),
        ('{"content": "a\tb"}', r"column 15: broken JSON: invalid control character, at '\tb"),
        ('{"content": "a', "column 13: broken JSON: unterminated string"),
        ('{"content": "a" "summary"}', "column 17: broken JSON: expecting ',' delimiter, at '\"summary\"}'"),
        ('{"content"', "column 11: broken JSON: expecting ':' delimiter, at the end of the line"),
        (f"{GOOD},", f"column {len(GOOD) + 1}: text after the row's end: ','"),
        (f"{GOOD}{GOOD}", f"column {len(GOOD) + 1}: text after the row's end: "),
    ],
)
def test_broken_json_is_named_by_line_column_and_text(line, message):
    assert str(refusal(f"{GOOD}\n{line}\n{GOOD}")).startswith(f"train.jsonl:2: {message}")


def test_curly_quotes_inside_text_are_not_blamed():
    error = refusal('{"content": "他说：“好”，再见", "summary": "a" "b"}')
    assert str(error) == """train.jsonl:1: column 41: broken JSON: expecting ',' delimiter, at '"b"}'"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[\n{GOOD}\n{GOOD}\n]", "a.json:3: column 1: a comma is missing between rows 1 and 2"),
        (f"[\n{GOOD},\n]", "a.json:3: column 1: a comma after the last row"),
        (f"[\n{GOOD}\n", "a.json:3: column 1: the array is not closed after row 1"),
        (f"[\n{GOOD},\n", "a.json:3: column 1: the file ends inside row 2"),
        (f"[{GOOD}]\n{GOOD}", "a.json:2: column 1: text after the array's end: "),
        (f"[{GOOD},\n{{“content”: 1}}]", "a.json:2: column 2: broken JSON: a curly quote “"),
        ("[]", "a.json: holds no rows"),
        ("", "a.json: is empty"),
        (" \n\n", "a.json: is empty"),
        ('{\n"content": "a",\n"summary": "b"\n}\n', "a.json:1: an object spread over several lines"),
        ("hello", "a.json:1: column 1: broken JSON: expecting value, at 'hello'"),
        ("[" * 100_000, "a.json:1 (row 1): column 102: lists and objects nested more than 100 deep, at '[["),
    ],
)
def test_a_file_that_is_no_row_of_objects_says_what_it_is(text, message):
    assert str(refusal(text, "a.json")).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,response\na,b,c\n", "a.csv:2: 3 cells, but the header names 2 columns"),
        ("prompt,response\na\n", "a.csv:2: 1 cells, but the header names 2 columns"),
        ('prompt,response\na,b\n"a,b\n', "a.csv:3: broken CSV"),
        ('prompt,response\n"a"b,c\n', "a.csv:2: broken CSV"),
        ("prompt,prompt\na,b\n", "a.csv:1: the header names 'prompt' twice"),
        ("prompt\na\n", "a.csv:1: neither JSON nor a CSV header with several columns: 'prompt'"),
        ("prompt,response\n", "a.csv: holds no rows"),
        ("prompt,response\na,b\na, \n", "a.csv:3: 'response' must be non-empty text, got ' '"),
    ],
)
def test_bad_csv_is_named_by_line(text, message):
    assert str(refusal(text, "a.csv")).startswith(message)


def test_a_byte_order_mark_at_the_beginning_is_passed_over():
    assert read(b"\xef\xbb\xbf" + GOOD.encode())[0].messages == read(GOOD)[0].messages
    assert read(b"\xef\xbb\xbfprompt,response\na,b\n", "a.csv")[0].messages[0].content == "a"


def test_gbk_is_named_by_line_and_byte_with_the_setting_that_reads_it():
    error = refusal(b"{}\n" + GOOD.encode("gbk"))
    assert str(error).startswith(
        "train.jsonl:2: byte 17 of the file (0xc0) is not UTF-8; as GBK it can be read"
    )
    assert error.hint == "data.charset=gb18030 reads it as that"
    assert read(GOOD.encode("gbk"), charset="gb18030")[0].messages[0].content == "类型#裤"


@pytest.mark.parametrize("codec", ["utf-16", "gbk", "big5"])
def test_another_character_set_is_a_note(codec):
    text = "prompt,response\n一天三次，好不好？,可以的。\n"
    dataset = read_dataset(write(text.encode(codec), "a.csv"), Data(charset="auto"))
    names = {"utf-16": "UTF-16", "gbk": "GB18030", "big5": "BIG5"}
    assert dataset.notes() == [f"read as {names[codec]}, not as UTF-8"]
    assert dataset.examples[0].messages[1].content == "可以的。"


def test_bytes_that_are_no_text_are_refused():
    assert "is not UTF-8" in str(refusal(b"what\xff\xff\xff\x80"))


def test_a_missing_file_is_answered_with_the_nearest_name():
    write(GOOD, "train.jsonl")
    with pytest.raises(DataError, match=r"tran\.jsonl: cannot be read: No such file") as caught:
        read_examples(Path("tran.jsonl"), Data())
    assert caught.value.hint == "did you mean train.jsonl?"


def test_a_missing_folder_is_named():
    with pytest.raises(DataError) as caught:
        read_examples(Path("nowhere/train.jsonl"), Data())
    assert caught.value.hint == "there is no folder nowhere"


@pytest.mark.skipif(sys.platform == "win32", reason="it is a path there")
@pytest.mark.parametrize("path", [r"D:\new\train.json", "D:/new/train.json"])
def test_a_path_of_windows_is_told_where_it_is_for_linux(path):
    with pytest.raises(DataError, match="No such file") as caught:
        read_examples(Path(path), Data())
    assert caught.value.hint.endswith(" /mnt/d/new/train.json")


def test_a_folder_is_answered_with_its_files():
    Path("data").mkdir()
    write(GOOD, "data/train.jsonl")
    with pytest.raises(DataError, match="data: is a folder") as caught:
        read_examples(Path("data"), Data())
    assert caught.value.hint == "name one of its files: train.jsonl"


# Where one file is named, the hint joins several, or lists them


def rows_of(*names: str) -> None:
    for number, name in enumerate(names):
        Path(name).parent.mkdir(exist_ok=True)
        row = {"prompt": f"问{number}", "response": f"答{number}"}
        text = json.dumps([row]) if name.endswith(".json") else json.dumps(row)
        Path(name).write_text(text, encoding="utf-8")


def follow_joining(hint: str) -> list[str]:
    """Run the command of a hint, and give the answers in the file that it names; a list has the same."""
    before, _, rest = hint.replace("`", "").partition("; then name ")
    words = shlex.split(before.partition("glmtune ")[2])
    done = glmtune(*words, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" written to all.jsonl (messages)") == len(words) - 5
    answers = [e.messages[-1].content for e in read_examples(Path(rest), Data())]
    for listed in re.findall(r"data\.train=\S+(?=;)", before):
        datasets = read_sources(load_recipe({"model": "m"}, [listed]).data)
        assert [e.messages[-1].content for read in datasets for e in read.examples] == answers
    return answers


@pytest.mark.parametrize(
    ("key", "word"),
    [
        *product(("validation", "test"), ["[a.json,b.jsonl]", "[a.json, b.jsonl]"]),
        *product(("train", "validation", "test"), ["a.json,b.jsonl", "a.json, b.jsonl", "[a].json*,b.jsonl"]),
    ],
)
def test_a_list_of_files_is_told_how_to_join_them(key, word):
    rows_of("a.json", "b.jsonl", "[a].json*")
    path = getattr(load_recipe({"model": "m"}, [f"data.{key}={word}"]).data, key)
    with pytest.raises(DataError, match="one file is needed, got 2 names") as caught:
        read_examples(path, Data())
    assert len(follow_joining(caught.value.hint)) == 2


@pytest.mark.parametrize("word", ["rows/*.json*", "ro*/?.json*", "rows/[ab].json*"])
def test_a_pattern_is_told_how_to_join_its_files(word):
    rows_of("rows/a.json", "rows/b.jsonl")
    for path in (Path(word), Path(word).absolute()):
        with pytest.raises(DataError, match="one file is needed, got 2 names") as caught:
            read_examples(path, Data())
    assert "rows/a.json" in caught.value.hint
    assert follow_joining(caught.value.hint) == ["答0", "答1"]


def test_a_pattern_of_one_file_names_it_and_one_of_none_says_so():
    rows_of("rows/a.json")
    with pytest.raises(DataError) as caught:
        read_examples(Path("rows/*.json"), Data())
    assert caught.value.hint == "did you mean rows/a.json?"
    with pytest.raises(DataError, match="No such file") as caught:
        read_examples(Path("rows/*.csv"), Data())
    assert caught.value.hint == "there is no such file in rows; files of rows there: a.json"


def test_a_name_with_a_comma_is_a_file_where_it_is_one():
    rows_of("a,b.json")
    assert len(read_examples(Path("a,b.json"), Data())) == 1


@pytest.mark.parametrize("files", [["a.json", "b.jsonl"], ("a.json",)])
@pytest.mark.parametrize("key", ["validation", "test"])
def test_a_list_in_a_recipe_is_told_how_to_join_them(files, key):
    rows_of("a.json", "b.jsonl")
    with pytest.raises(ConfigError, match=rf"data\.{key}: names one file, got a list") as caught:
        load_recipe({"model": "m", "data": {key: files}})
    assert follow_joining(caught.value.hint) == ["答0", "答1"][: len(files)]


def test_a_folder_of_rows_is_told_how_to_join_its_files():
    rows_of("rows/a.json", "rows/b.jsonl", "rows/note.md")
    with pytest.raises(DataError, match="rows: is a folder") as caught:
        read_sources(Data(train=Path("rows")))
    one, _, rest = caught.value.hint.partition("; or train on all of them: ")
    assert one == "name one of its files: a.json, b.jsonl, note.md"
    assert rest.startswith("data.train=[rows/a.json,rows/b.jsonl]; or join them first")
    assert follow_joining(caught.value.hint) == ["答0", "答1"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_an_unreadable_file_is_a_data_error_with_the_systems_words(monkeypatch, number):
    path = write(GOOD)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(number, "the system says no")

    monkeypatch.setattr(io, "open", fail)
    with pytest.raises(DataError, match=r"train\.jsonl: cannot be read: the system says no") as caught:
        read_examples(path, Data())
    assert caught.value.hint


def test_reading_imports_no_torch():
    code = "import sys, glmtune.data.reader, glmtune.data.split; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(
    ("name", "num_rows"), [("adverts.jsonl", 240), ("alpaca.json", 30), ("chat_history.jsonl", 191)]
)
def test_the_projects_own_examples_are_read_whole(name, num_rows):
    examples = read_examples(EXAMPLES / name, Data())
    assert len({example.messages for example in examples}) == num_rows


# Keys given twice, lost brackets


@pytest.mark.parametrize("joint", ["},{", "},\n{", "}, {", "},\n {", "},\r\n{", "} ,{", "},\n\n{", "},\t{"])
@pytest.mark.parametrize("lost", [0, 1, 15, 31])
@pytest.mark.parametrize("left", ["", ","])
def test_a_lost_bracket_between_two_rows_loses_no_row(joint, lost, left):
    """32 places in a file of 33 rows, with or without the comma: an error, never 32 rows."""
    rows = [json.dumps({"prompt": f"问 {i}", "response": f"答 {i}"}) for i in range(33)]
    parts = [row[1:-1] for row in rows]
    text = "[{" + joint.join(parts[: lost + 1]) + left + joint.join(parts[lost + 1 :]) + "}]"
    assert len(read("[" + ",".join(rows) + "]", "a.json")) == 33
    line = text.count("\n", 0, text.index(left + parts[lost + 1])) + 1
    assert str(refusal(text, "a.json")).startswith(f"a.json:{line}")


@pytest.mark.parametrize("other", ['"output": "b"', '"answer": "b"', '"messages": []'])
def test_a_row_that_swallowed_one_of_another_format_is_refused(other):
    refusal(f'{{"prompt": "a", "response": "b", "question": "q", "instruction": "i", {other}}}')


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a", "prompt": "c", "response": "b"}', "2: column 17"),
        ('[\n{"prompt": "a",\n"response": "b",\n"response": "c"}]', "4 (row 1): column 1"),
        ('{"data": [{"prompt": "a",\n"prompt": "b"}]}', "2: column 1"),
        ('{"prompt": "a", "response": "b", "about": {"x": 1, "x": 1}}', "1: column 52"),
    ],
)
def test_a_key_given_twice_in_a_row_is_named_by_line_and_column(text, place):
    error = refusal(text, "a.json")
    assert str(error).startswith(f"a.json:{place}: the key '")
    assert "is given twice" in str(error)


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("messages", '[{"role": "user", "role": "user", "content": "a"}]'),
        ("conversations", '[{"from": "human", "value": "a", "value": "b"}]'),
        ("history", '[["a", "b"], {"a": 1, "a": 2}]'),
        ("tools", '[{"name": "f", "name": "g"}]'),
    ],
)
def test_a_key_given_twice_in_the_json_of_a_cell_is_refused_at_its_row(column, cell):
    talk = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    beside = {"tools": {"messages": talk}, "history": {"prompt": "a", "response": "b"}}.get(
        column, {"id": "1"}
    )
    file = io.StringIO()
    csv.writer(file).writerows([[column, *beside], [cell, *beside.values()]])
    assert str(refusal(file.getvalue(), "a.csv")).startswith("a.csv:2: JSON in which the key '")


def test_a_calls_arguments_with_a_key_twice_are_refused():
    call = {"function": {"name": "f", "arguments": '{"city": "a", "city": "b"}'}}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert "JSON in which the key 'city' is given twice" in str(refusal(json.dumps({"messages": turns})))


# Line ends, records, and what a file is


def test_lines_that_end_as_on_old_macs_are_read():
    assert [e.where for e in read(f"{GOOD}\r{GOOD}\r")] == ["train.jsonl:1", "train.jsonl:2"]


def test_records_without_a_filled_cell_are_passed_over_like_blank_lines():
    assert [e.where for e in read("prompt,response\na,b\n,\nc,d\n,\n", "a.csv")] == ["a.csv:2", "a.csv:4"]


def test_values_separated_by_bars_are_read():
    assert read("prompt|response\na,b|c\n", "a.csv")[0].messages[0].content == "a,b"


@pytest.mark.parametrize("comment", ["// a", "# a", "/* a */"])
def test_comments_in_json_are_named(comment):
    assert refusal(f"{comment}\n{GOOD}").hint == "JSON has no comments: remove the line"


@pytest.mark.parametrize(
    ("text", "name", "message", "hint", "mended"),
    [
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "a.json",
            "a row is one turn of a dialogue", '{"messages": [...]}',
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        ),
        (
            '[[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]]', "a.json",
            "a row must be an object with named columns, got [", '{"conversations": [...]}',
            '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]',
        ),
        (
            '[[{"prompt": "a", "response": "b"}]]', "a.json",
            "a row must be an object with named columns, got [", "take out the inner [ and ]",
            '[{"prompt": "a", "response": "b"}]',
        ),
        (
            '{"x": {"prompt": "a", "response": "b"}, "y": {"prompt": "c", "response": "d"}}', "a.json",
            "one object around everything, with an object under each of its 2 names: x, y", "as an array",
            '[{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]',
        ),
        (
            "早\t早上好\n晚\t晚上好\n", "a.txt",
            "cannot tell the format", "put names above line 1 if it is a row",
            "prompt\tresponse\n早\t早上好\n晚\t晚上好\n",
        ),
        (
            '{"text": "a"}', "a.jsonl", "cannot tell the format", '{"prompt": "...", "response": "..."}',
            '{"prompt": "a", "response": "b"}',
        ),
    ],
)  # fmt: skip
def test_the_hint_for_another_shape_leads_to_rows(text, name, message, hint, mended):
    error = refusal(text, name)
    assert message in str(error)
    assert hint in error.hint
    assert read(mended, name)


def test_columns_in_another_spelling_are_read_as_the_hint_says():
    error = refusal('{"id": 1, "Questions": "a", "Answers": "b"}')
    assert error.hint.endswith("data.prompt_column=Questions data.response_column=Answers")
    (row,) = read(
        '{"id": 1, "Questions": "a", "Answers": "b"}', prompt_column="Questions", response_column="Answers"
    )
    assert [m.content for m in row.messages] == ["a", "b"]


# Real files


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "num_rows", "num_rounds"),
    [
        ("AdvertiseGen/dev.json", 1070, 1070),
        ("AdvertiseGen/train_first5000.json", 5000, 5000),
        ("llamafactory/alpaca_zh_demo.json", 1000, 1000),
        ("llamafactory/alpaca_en_demo.json", 999, 999),
        ("llamafactory/identity.json", 91, 91),
        ("self_cognition.json", 80, 80),
        ("chat_history_car_repair.jsonl", 3, 6),
        ("oaast_sft_zh.json", 689, 1138),
        ("chatglm6b_improve_data_sample.jsonl", 100, 100),
    ],
)
def test_real_files_are_read_whole(shared, name, num_rows, num_rounds):
    examples = read_examples(shared / "data" / name, Data())
    assert len(examples) == num_rows
    assert sum(m.role == "assistant" for e in examples for m in e.messages) == num_rounds


@pytest.mark.shared
def test_real_csv_is_read_by_line_with_named_columns_and_its_digits_as_text(shared):
    named = Data(prompt_column="review", response_column="label")
    examples = read_examples(shared / "data/sentiment/ChnSentiCorp_htl_all.csv", named)
    assert {e.messages[1].content for e in examples} == {"0", "1"}


def test_a_cell_longer_than_pythons_own_limit_is_read_and_the_limit_left_alone():
    before = csv.field_size_limit()
    (example,) = read(f"prompt,response\na,{'b' * 140_000}\n", "rows.csv")
    assert len(example.messages[1].content) == 140_000
    assert csv.field_size_limit() == before
