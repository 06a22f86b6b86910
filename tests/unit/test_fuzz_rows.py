"""Rows as nobody means them: each file is read whole or refused in words, and no row goes without a word."""

import csv
import io
import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import Outcomes, fuzzed, json_text, odd_bytes, odd_values
from glmtune.data.encode import encode_examples
from glmtune.data.reader import read_dataset
from glmtune.load import load_tokenizer
from glmtune.recipe import Data

CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city": "北京", "n": 2}'}}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}
TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
ROWS = (
    {"instruction": "说", "input": "早", "output": "早上好", "history": [["a", "b"]], "system": "s"},
    {"content": "类型#裙", "summary": "一条裙"},
    {"prompt": "p", "response": "r", "history": '[["a", "b"]]', "id": 7},
    {"messages": TURNS},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "天气"}]},
            {"role": "assistant", "content": None, "reasoning_content": "t", "tool_calls": [CALL]},
            {"role": "tool", "content": {"t": 3}, "tool_call_id": "c1"},
            {"role": "assistant", "content": "三度", "loss": True},
        ],
        "tools": [TOOL],
    },
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[]"},
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([TOOL]),
    },
    {
        "conversations": [
            {"role": "user", "content": "q"},
            {"role": "tool", "name": "f", "parameters": {"x": 1}, "observation": {"y": [1]}},
            {"role": "assistant", "metadata": "", "content": "a"},
        ]
    },
    {"conversation": [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]},
)
"""One row, at least, of each format."""
TOKENIZER = load_tokenizer("glm-tiny")


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name and the bytes of a file of one to three rows."""
    row = draw(st.sampled_from(ROWS))
    rows = [draw(odd_values(row)), *[row] * draw(st.integers(0, 2))]
    kind = draw(st.sampled_from(["lines", "array", "indented", "csv"]))
    if kind == "csv":
        content = _csv(rows)
    elif kind == "lines":
        content = "".join(json_text(row, ensure_ascii=draw(st.booleans())) + "\n" for row in rows)
    else:
        content = json_text(rows, indent=2 if kind == "indented" else None)
    name = {"lines": "a.jsonl", "csv": "a.csv"}.get(kind, "a.json")
    return name, draw(odd_bytes(content.encode("utf-8", errors="surrogatepass")))


def _csv(rows: list[object]) -> str:
    named = [row for row in rows if isinstance(row, dict)] or [{"prompt": "a", "response": "b"}]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(named[0]), extrasaction="ignore", restval="")
    writer.writeheader()
    for row in named:
        writer.writerow({k: v if isinstance(v, str) else json_text(v) for k, v in row.items()})
    return text.getvalue()


def _num_rows(name: str, text: str) -> int:
    """How many rows a file has, counted apart from our readers."""
    if name.endswith(".csv"):
        return sum(map(any, csv.reader(io.StringIO(text, newline="")))) - 1
    if text.lstrip().startswith("["):
        return len(json.loads(text))
    return sum(
        not line.isspace() for line in text.replace("\n" if "\n" in text else "\r", "\n").split("\n") if line
    )


def _read_all(count: int) -> Outcomes:
    outcomes = Outcomes()

    @fuzzed(count)
    @given(files())
    def check(file: tuple[str, bytes]) -> None:
        name, content = file
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            found = outcomes(lambda: read_dataset(path, Data()))
            if found is None:
                return
            text = content.decode("utf-8-sig")
            assert len(found.examples) + found.num_unanswered == _num_rows(name, text)
            encoded = outcomes(lambda: encode_examples(TOKENIZER, found.examples, Data(overlong="cut_any")))
            if encoded is not None:
                assert len(encoded.rows) + encoded.report.drops.total() == len(found.examples)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # Python's parser on an answer's escapes
        check()
    return outcomes


def test_rows_are_read_whole_or_refused_in_words() -> None:
    _read_all(150).check(least=25)


@pytest.mark.slow
def test_many_more_rows_are_read_whole_or_refused_in_words() -> None:
    _read_all(3000).check(least=500)
