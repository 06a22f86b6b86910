"""A folder whose chat_template somebody has edited works everywhere once its format is named."""

import json
from pathlib import Path

import pytest

from commands import glmtune as command
from glmtune.load import load_model, load_tokenizer
from models import tiny_hf_folder

ROWS = [{"prompt": "去哪", "response": "早上好"}] * 4
WORDS = ("train.steps=1", "method=full", "data.holdout_rows=1", "train.batch_size=1", "samples.prompts=[]")


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_hf_folder(tmp_path_factory.mktemp("edited") / "model", "GLM-4-0414")
    (folder / "chat_template.jinja").write_text("[gMASK]<sop>{{ messages }}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(edited: Path, rows: Path) -> Path:
    folder = rows.parent / "run"
    words = (f"model={edited}", "template=glm4_0414", f"data.train={rows}", f"output={folder}", *WORDS)
    done = command("train", *words, cwd=rows.parent)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_of_it_knows_its_format_ever_after(run: Path, rows: Path, tmp_path: Path) -> None:
    load_model(run)
    assert load_tokenizer(run).template == "glm4_0414"
    for words in (
        ("verify", run),
        ("info", run),
        ("chat", run, "--max-new-tokens", "1", "--rounds", "1"),
        ("evaluate", run, "--data", rows, "evaluate.max_new_tokens=1", f"output={tmp_path / 'scores'}"),
        ("train", f"model={run}", f"data.train={rows}", f"output={tmp_path / 'more'}", *WORDS),
    ):
        done = command(*words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.slow
def test_an_export_of_it_says_its_format_itself(run: Path, tmp_path: Path) -> None:
    done = command("export", run, "--to", "merged", "--output", tmp_path / "merged", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(tmp_path / "merged").template == "glm4_0414"


@pytest.mark.parametrize(
    "words",
    [
        ("data", "stats", "ROWS", "--model", "MODEL", "--template", "glm4_0414"),
        ("info", "MODEL", "--template", "glm4_0414"),
        ("chat", "MODEL", "--template", "glm4_0414", "--max-new-tokens", "1", "--rounds", "1"),
        ("evaluate", "MODEL", "--data", "ROWS", "template=glm4_0414", "evaluate.max_new_tokens=1"),
    ],
    ids=lambda words: words[0],
)
def test_each_verb_takes_its_format(edited: Path, rows: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    places = {"MODEL": edited, "ROWS": rows}
    done = command(*(places.get(word, word) for word in words), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
