"""Small files after public reports: each is read row for row, or refused in words whose hint works."""

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from glmtune.data.reader import read_dataset
from glmtune.errors import GlmtuneError
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data

pytestmark = pytest.mark.shared


class Read(NamedTuple):
    """The roles of each row's messages by their first letters, and the notes."""

    rows: tuple[str, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}


class Refused(NamedTuple):
    """Words of the error, of the hint, and what the hint leads to."""

    error: str
    hint: str
    then: Read | None = None


ONE, TWO, THREE = ("ua",), ("ua",) * 2, ("ua",) * 3
MEANING = "columns that carry meaning, and nobody reads: "
CONTEXT = Read(ONE, settings={"input_column": "context"})
TAKEN = (
    "taken as question and answer: 'Question' and 'Answer' (others: data.prompt_column, data.response_column)"
)
IMAGES = Read(
    ONE, ("columns left out by data.ignore_columns: 'images' (1 row)",), {"ignore_columns": ("images",)}
)
BELLE = Read(("uaua",), settings={"transcripts": "turns"})
FIREFLY = "columns that nobody reads: 'conversation_id' (1 row), 'category' (1), 'dataset' (1)"
NAN = "cells that spell nothing (nan, None, null), read as text: 'input' (2 rows)"

GBK = "read as GB18030, not as UTF-8"

CASES: dict[str, Read | Refused] = {
    "belle.jsonl": Refused("'instruction' is a dialogue written as text", "data.transcripts=turns", BELLE),
    "bom.csv": Read(ONE),
    "book.xlsx": Refused(
        "begins with the bytes 50 4b 03 04: the file is an Excel sheet (.xlsx)", "CSV (UTF-8)"
    ),
    "calllast.jsonl": Read(("sua",)),
    "comment.jsonl": Refused(":1: column 1: broken JSON", "JSON has no comments: remove the line"),
    "consec.jsonl": Read(
        ("uuaa",),
        (
            "rows in which one speaker has two turns in a row, read as they stand: 1 "
            "(first in consec.jsonl:1)",
        ),
    ),
    "context.jsonl": Refused(f"{MEANING}'context' (1 row)", "data.input_column=context", CONTEXT),
    "cr.jsonl": Read(THREE),
    "crlf.jsonl": Read(THREE),
    "data.txt": Refused("cannot tell the format", "put names above line 1 if it is a row"),
    "dict.json": Refused("one object around everything", "keep the objects without the names, as an array"),
    "dup.jsonl": Refused("dup.jsonl:1: column 15: the key 'prompt' is given twice", "keep the one that is"),
    "dup.yaml": Refused("dup.yaml:6:3: the key 'steps' is given twice", "keep the one that is right"),
    "emoji.jsonl": Read(ONE),
    "emptycell.csv": Read(TWO),
    "firefly.jsonl": Read(ONE, (FIREFLY,)),
    "gbk.csv": Refused(
        "as GBK it can be read", "data.charset=gb18030", Read(ONE, (GBK,), {"charset": "gb18030"})
    ),
    "gptfirst.jsonl": Read(("aua",)),
    "histdict.jsonl": Refused("'history[0]' must be [question, answer]", "a list of earlier rounds"),
    "histnull.jsonl": Refused("'history[0][1]' must be non-empty text, got null", "remove the row"),
    "histstr.jsonl": Refused(":2: 'history' must be [[question, answer], ...]", "JSON, with double quotes"),
    "image.jsonl": Refused(f"{MEANING}'images' (1 row)", "data.ignore_columns=images", IMAGES),
    "index.csv": Read(TWO, ("columns that nobody reads: '' (2 rows)",)),
    "jsonanswer.jsonl": Read(("uaua",)),
    "jsonout.jsonl": Refused("'response' must be text", "write it as one text"),
    "kv.jsonl": Read(ONE, (TAKEN, "columns that nobody reads: 'id' (1 row)")),
    "list.jsonl": Refused("'instruction' must be text", "write it as one text"),
    "listtop.jsonl": Refused("a row is one turn of a dialogue", '{"messages": [...]}'),
    "lr.yaml": Read(()),
    "ls.jsonl": Read(("ua",) * 4),
    "metadataobs.jsonl": Read(("suaoa",)),
    "mixed.jsonl": Read(THREE),
    "nan.csv": Read(THREE, (NAN,)),
    "nan.jsonl": Refused("'input' must be text, got NaN", 'NaN is no text: write ""'),
    "nested.json": Refused("a row must be an object with named columns", "take out the inner [ and ]"),
    "nul.jsonl": Read(("ua",) * 4),
    "num.jsonl": Read(TWO, ("cells that hold a number, true or false, read as text: 'response' (2 rows)",)),
    "parallel.jsonl": Read(("suaooa",)),
    "parts.jsonl": Refused("holds parts that are no text: image_url", "these models read text alone"),
    "pipe.csv": Read(ONE),
    "plain.jsonl": Read(("ua",) * 4),
    "pretty.json": Refused("an object spread over several lines", "write one row a line"),
    "quoted.csv": Read(ONE),
    "reason.jsonl": Read(THREE),
    "reason_out.jsonl": Read(THREE),
    "surrogate.jsonl": Refused("'response' holds half a character", "write the whole"),
    "sysnull.jsonl": Read(TWO),
    "sysnull2.jsonl": Read(ONE),
    "sysnull3.jsonl": Read(ONE),
    "tab.yaml": Refused("tab.yaml:3:1: not valid YAML: a tab where YAML has spaces", "indent with spaces"),
    "template.jsonl": Read(ONE),
    "text.jsonl": Refused("cannot tell the format", "write the turns without a chat format's marks"),
    "thinkcall.jsonl": Read(("uaoa",)),
    "tooldict.jsonl": Read(("uaoa",)),
    "toolempty.jsonl": Refused("'messages[1].content' must be non-empty text, got ''", "remove the row"),
    "trail.csv": Read(ONE),
    "trailrow.csv": Read(ONE),
    "utf16.jsonl": Read(THREE, ("read as UTF-16, not as UTF-8",)),
    "utf16le_nobom.jsonl": Refused(
        "the file is UTF-16LE text without a byte-order mark",
        "data.charset=utf-16-le",
        Read(THREE, ("read as UTF-16-LE, not as UTF-8",), {"charset": "utf-16-le"}),
    ),
    "win.yaml": Refused(r"D:\new\train.json: in double quotes a backslash begins", "D:/new/train.json"),
}


def test_every_file_has_its_line(shared: Path) -> None:
    files = {path.name for path in (shared / "cases").iterdir() if path.suffix != ".md"}
    assert files == CASES.keys()


def read(path: Path, settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The roles of each row's messages and the notes; of a recipe nothing."""
    if path.suffix == ".yaml":
        load_recipe(path)
        return [], []
    found = read_dataset(path, Data(**settings))
    roles = ["".join(m.role[0] for m in e.messages) for e in found.examples]
    return roles, [text.replace(f"{path.parent}/", "") for text in found.notes()]


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_row_for_row_or_refused_with_a_hint_that_works(shared: Path, name: str) -> None:
    path, expected = shared / "cases" / name, CASES[name]
    if isinstance(expected, Refused):
        with pytest.raises(GlmtuneError) as caught:
            read(path, {})
        assert expected.error in str(caught.value)
        assert expected.hint in caught.value.hint
        expected = expected.then or Read(())
        if not expected.rows:
            return
    assert read(path, expected.settings) == ([*expected.rows], [*expected.notes])


def raw_rows(path: Path) -> list[Any]:
    """The rows as Python's own modules read them."""
    text = path.read_bytes().decode("utf-16" if path.name == "utf16.jsonl" else "utf-8-sig")
    if path.suffix == ".csv":
        mark = "|" if path.name == "pipe.csv" else ","
        records = [*csv.reader(io.StringIO(text, newline=""), delimiter=mark)][1:]
        return [record for record in records if any(record)]
    return [json.loads(line) for line in re.split(r"[\r\n]+", text) if line.strip()]


def texts_of(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, str):
        return [value]
    return [json.dumps(value), *(text for item in inner for text in texts_of(item))]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if isinstance(case, Read) and case.rows]
)
def test_the_texts_of_a_file_reach_the_messages_unchanged(shared: Path, name: str) -> None:
    path = shared / "cases" / name
    for raw, example in zip(raw_rows(path), read_dataset(path, Data()).examples, strict=True):
        for message in example.messages:
            asked = message.content.partition("\n")[0] if name == "nan.csv" else message.content
            assert not asked or asked in texts_of(raw)


def test_a_rate_without_a_point_is_a_number(shared: Path) -> None:
    assert load_recipe(shared / "cases" / "lr.yaml").train.lr == 1e-4
