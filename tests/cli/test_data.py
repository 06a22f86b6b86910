"""`glmtune data`, as a user types it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from commands import glmtune
from glmtune.data.formats import FORMATS
from glmtune.data.reader import read_dataset
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.tokenizers import read_tokenizer
from glmtune.workflows.rows import encode_test_rows, training_rows
from models import tiny_folder

ROW = {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "你好"}]}


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "my.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n" * 2, encoding="utf-8")
    return path


def test_convert_says_what_it_wrote(rows, tmp_path):
    done = glmtune("data", "convert", "my.jsonl", "out.json", "--to", "alpaca", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "2 rows of my.jsonl (messages) written to out.json (alpaca)",
        "empty questions kept: 2",
    ]
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written == [{"instruction": "", "output": "你好"}] * 2
    again = glmtune("data", "convert", "my.jsonl", "out.json", "--to", "alpaca", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (
        2,
        "error: out.json: exists already\nhint: choose a new name, or remove it first\n",
    )


def test_columns_are_named_as_in_a_recipe(tmp_path):
    (tmp_path / "a.csv").write_text("q,a\n早,早上好\n", encoding="utf-8")
    for word in ("prompt_column=q", "data.prompt_column=q"):
        done = glmtune("data", "stats", "a.csv", word, "response_column=a", cwd=tmp_path)
        assert "  format                   q/a" in done.stdout.splitlines(), done.stderr
    done = glmtune("data", "stats", "a.csv", "system=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "allowed: prompt_column, response_column, history_column, input_column" in done.stderr


def test_stats_are_counted_and_tokens_where_a_model_is_named(rows, tmp_path):
    tiny_folder(tmp_path / "model")
    done = glmtune("data", "stats", "my.jsonl", "--model", "model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["my.jsonl", "  rows                     2", "  format                   messages"]
    assert "  same as an earlier row   1 (50.0%)" in lines
    assert lines[-2].startswith("  tokens                   p50 ")
    assert lines[-2].endswith(" (chatglm3)")
    assert lines[-1] == "  the model's context      128 tokens; 0 rows are longer"


def test_each_verb_names_the_columns_that_nobody_reads_and_stops_at_those_that_carry_meaning(tmp_path):
    row = {"id": 7, "prompt": "早", "response": "早上好"}
    note = "columns that nobody reads: 'id' (3 rows)"
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row)}\n" * 3, encoding="utf-8")
    for words in (["stats", "a.jsonl"], ["convert", "a.jsonl", "b.json", "--to", "alpaca"]):
        done = glmtune("data", *words, cwd=tmp_path)
        assert note in [line.strip() for line in done.stdout.splitlines()], done.stderr
    tokenizer = read_tokenizer(tiny_folder(tmp_path / "model"))
    notes = training_rows(tokenizer, Data(train=tmp_path / "a.jsonl")).notes
    assert f"{tmp_path / 'a.jsonl'}: {note}" in [said.text for said in notes]
    lost = json.dumps({**row, "context": "醒了"})
    (tmp_path / "a.jsonl").write_text(f"{lost}\n{lost}\n{lost}\n", encoding="utf-8")
    for words in (["stats", "a.jsonl"], ["convert", "a.jsonl", "c.json", "--to", "alpaca"]):
        done = glmtune("data", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (
            2,
            "error: a.jsonl:1: columns that carry meaning, and nobody reads: 'context' (3 rows)\n"
            "hint: data.input_column=context puts it below the question; "
            "data.ignore_columns=context leaves it out\n",
        )
        for word in re.findall(r"data\.\S+", done.stderr):
            again = glmtune("data", *words, word, cwd=tmp_path)
            assert again.returncode == 0, again.stderr
            (tmp_path / "c.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match="'context' "):
        training_rows(tokenizer, Data(train=tmp_path / "a.jsonl"))


def test_stats_show_the_first_row_as_it_is_read_and_no_zeros(tmp_path):
    turns = [
        {"from": "gpt", "value": "在"},
        {"from": "human", "value": "几天？"},
        {"from": "gpt", "value": "七"},
    ]
    rows = [{"Question": "几天？", "Answer": 7, "id": 1}], [{"conversations": turns}]
    for name, found in zip(("a.json", "b.json"), rows, strict=True):
        (tmp_path / name).write_text(json.dumps(found), encoding="utf-8")
    text = glmtune("data", "stats", "a.json", cwd=tmp_path).stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert lines[6:9] == [
        ["columns read", "'Question', 'Answer'"],
        ["first question", "'几天？'"],
        ["first answer, learned", "'7'"],
    ]
    assert not re.search(r" 0( \(|$)", text, re.MULTILINE)
    text = glmtune("data", "stats", "b.json", cwd=tmp_path).stdout
    assert "  first question           none" in text.splitlines()
    warning = "warning: answers with no question before them, learned all the same: 1 "
    warning += "(first in b.json:1 (row 1))"
    assert text.splitlines()[-1].strip() == warning


def test_thoughts_are_counted_and_so_are_those_that_the_model_does_not_learn(tmp_path):
    row = {"role": "assistant", "reasoning_content": "数一数", "content": "七天。"}
    rows = [
        {"messages": [{"role": "user", "content": "几天？"}, row]},
        {"prompt": "三加四？", "response": "七"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "my.jsonl").write_text(text, encoding="utf-8")
    lines = glmtune("data", "stats", "my.jsonl", "--model", "glm-tiny", cwd=tmp_path).stdout.splitlines()
    assert "  with thoughts            1 (50.0%)" in lines
    assert lines[-1] == "  thoughts left out        1: chatglm3 learns none"


def test_a_bad_row_is_an_error_and_a_hint(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user"}]}', encoding="utf-8")
    done = glmtune("data", "stats", "a.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: a.jsonl:1: 'messages[0]' has no 'content', got 'role'\n"
        'hint: a message is like {"role": "user", "content": "..."}\n',
    )


def test_both_verbs_work_without_torch(rows, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from glmtune.cli import main; "
        "sys.argv = ['glmtune', 'data', *sys.argv[1:]]; main()"
    )
    for words in (["stats", "my.jsonl"], ["convert", "my.jsonl", "b.json", "--to", "sharegpt"]):
        subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, check=True)


def test_rows_in_another_character_set_are_read_by_each_verb_as_the_hint_says(tmp_path):
    text = "prompt,response\n一周有几天？,七天。\n一年有几个月？,十二个月。\n"
    (tmp_path / "gbk.csv").write_bytes(text.encode("gbk"))
    for words in (["stats", "gbk.csv"], ["convert", "gbk.csv", "b.jsonl", "--to", "messages"]):
        done = glmtune("data", *words, cwd=tmp_path)
        assert done.returncode == 2
        word = re.search(r"hint: (data\.charset=\S+) reads it", done.stderr)[1]
        done = glmtune("data", *words, "encoding=gb18030", cwd=tmp_path)
        assert done.stderr.endswith("hint: the character set is charset=gb18030\n")
        for given in (word, "charset=auto"):
            done = glmtune("data", *words, given, cwd=tmp_path)
            assert "read as GB18030, not as UTF-8" in done.stdout, done.stderr
            (tmp_path / "b.jsonl").unlink(missing_ok=True)
    tokenizer = read_tokenizer(tiny_folder(tmp_path / "model"))
    settings = Data(train=tmp_path / "gbk.csv", charset="auto")
    notes = [note.text for note in training_rows(tokenizer, settings).notes]
    assert f"{tmp_path / 'gbk.csv'}: read as GB18030, not as UTF-8" in notes
    settings = Data(test=tmp_path / "gbk.csv", charset="gb18030")
    assert len(encode_test_rows(tokenizer, settings, num_new=8).rows) == 2
    with pytest.raises(DataError) as caught:
        encode_test_rows(tokenizer, Data(test=tmp_path / "gbk.csv"), num_new=8)
    assert "data.charset=gb18030" in caught.value.hint


def test_stats_of_several_files_are_those_of_each(rows, tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": "问", "response": "答"}), encoding="utf-8")
    one, other, both = (
        glmtune("data", "stats", *files, cwd=tmp_path).stdout
        for files in (["my.jsonl"], ["b.jsonl"], ["my.jsonl", "b.jsonl"])
    )
    assert both == one + other


def test_converting_several_files_joins_them(rows, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(rows.read_bytes())
    words = ["data", "convert", "my.jsonl", "b.jsonl", "all.jsonl", "--to", "messages"]
    assert glmtune(*words, cwd=tmp_path).stdout.splitlines() == [
        "2 rows of my.jsonl (messages) written to all.jsonl (messages)",
        "empty questions kept: 2",
        "2 rows of b.jsonl (messages) written to all.jsonl (messages)",
        "empty questions kept: 2",
    ]
    assert (tmp_path / "all.jsonl").read_bytes().count(b"\n") == 4


# The guide

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "data.md", ROOT / "docs" / "data.zh.md"]


def guide_blocks(path: Path) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_both_guides_show_the_same():
    english, chinese = (guide_blocks(path) for path in GUIDES)
    assert english == chinese
    words = [set(re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8"))) for path in GUIDES]
    assert words[0] == words[1]


def test_the_guide_shows_a_row_of_every_format_that_loads(tmp_path):
    rows = [block for block in guide_blocks(GUIDES[0]) if block.startswith("{")]
    found, with_tools = [], []
    for row in rows:
        (tmp_path / "row.jsonl").write_text(row, encoding="utf-8")
        found.append(read_dataset(tmp_path / "row.jsonl", Data()))
        with_tools += [repr(found[-1].examples[0].messages)] if '"tools"' in row else []
    assert {dataset.format for dataset in found} == set(FORMATS)
    assert all(f"`{name}`" in GUIDES[0].read_text(encoding="utf-8") for name in FORMATS)
    assert len(with_tools) == 3
    assert len(set(with_tools)) == 1


def test_the_guides_commands_run(tmp_path):
    tiny_folder(tmp_path / "model")
    row = {"prompt": "早", "response": "早上好"}
    for name in ("my.json", "general.json"):
        (tmp_path / name).write_text(json.dumps([row]), encoding="utf-8")
    lines = [line for block in guide_blocks(GUIDES[0]) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("glmtune ")]
    assert len(commands) == 10
    for _, *words in commands:
        words += ["train.steps=1", "train.epochs=null", "samples.prompts=[]"] if words[0] == "train" else []
        words = [word.replace("/models/chatglm3-6b", str(tmp_path / "model")) for word in words]
        done = glmtune(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_several_files_in_one_word_are_counted_by_the_words_of_the_hint(rows, tmp_path):
    (tmp_path / "b.jsonl").write_bytes(rows.read_bytes())
    (command,) = re.findall("count each: `glmtune (.*?)`", stats("[my.jsonl,b.jsonl]", tmp_path).stderr)
    done = glmtune(*shlex.split(command), cwd=tmp_path)
    assert [line for line in done.stdout.splitlines() if line[:1] != " "] == ["my.jsonl", "b.jsonl"]


def test_a_hint_about_one_of_several_files_says_that_settings_are_for_all(rows, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"frage": "a", "antwort": "b"}\n', encoding="utf-8")
    words = re.findall(r"data\.\w+=\w+", (done := stats("my.jsonl c.jsonl", tmp_path)).stderr)
    assert done.stderr.endswith("here that is for every file: take files that differ one by one\n")
    assert stats(" ".join(["c.jsonl", *words]), tmp_path).returncode == 0


def stats(words, folder):
    return glmtune("data", "stats", *words.split(), cwd=folder)
