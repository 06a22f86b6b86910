"""`glmtune export` as typed."""

import json
from pathlib import Path

import pytest

from commands import glmtune
from glmtune import load_tokenizer
from glmtune.workflows.quality import held_out_rows
from models import tiny_folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    tiny_folder(folder / "model")
    (folder / "rows.csv").write_text("prompt,response\n" + "问题,答案。\n" * 12, encoding="utf-8")
    words = (
        "model=model data.train=rows.csv train.steps=3 train.lr=1e-2 quant=int8 samples.prompts=[] output=run"
    )
    done = glmtune("train", *words.split(), "data.system=你是助手。", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.usefixtures("warm_processes")
def test_an_export_says_what_it_proved_and_what_it_lost(desk: Path) -> None:
    words = ("--to", "int4", "--output", "out", "--data", "rows.csv", "--score-rows", "1", "--max-rows", "2")
    done = glmtune("export", "run", *words, cwd=desk)
    assert done.returncode == 0, done.stderr
    for said in (
        "opened in a fresh process (ChatGLMForConditionalGeneration): logits differ by at most",
        "greedy ids equal",
        "trained on the base in int8, merged onto the un-quantised one: logits differ by up to",
        "perplexity on 2 rows (rows.csv), in float32:",
        "scores of 1 answers: rouge-l",
        "trained with a system text that no file of this kind holds; send it yourself: '你是助手。'",
        "out: done, ",
    ):
        assert said in done.stdout
    assert done.stdout.count(" of 100 before") == 2
    facts = json.loads((desk / "out" / "export.json").read_text(encoding="utf-8"))
    assert facts["quality"]["scored_rows"] == 1
    assert facts["system"] == "你是助手。"
    again = glmtune("export", "run", *words, cwd=desk)
    assert again.returncode == 2
    assert "error: out: this folder is not empty and will not be overwritten" in again.stderr


@pytest.mark.usefixtures("warm_processes")
def test_without_rows_nothing_is_claimed(desk: Path) -> None:
    done = glmtune("export", "model", "--to", "int8", "--output", "int8", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "warning: the loss of quality is not known: this is no run" in done.stdout
    assert "--data FILE" in done.stdout
    assert json.loads((desk / "int8" / "export.json").read_text(encoding="utf-8"))["quality"] is None


def test_an_unknown_kind_is_refused_with_the_known_ones(desk: Path) -> None:
    done = glmtune("export", "run", "--to", "gguf", "--output", "x", cwd=desk)
    assert done.returncode == 2
    assert "error: to: unknown 'gguf'" in done.stderr
    assert "known are merged, hf, official-ptuning, lora-from-adalora, int8, int4" in done.stderr


def test_rows_of_a_file_that_has_changed_since_are_not_called_held_out(desk: Path) -> None:
    rows = desk / "rows.csv"
    before = rows.read_bytes()
    rows.write_bytes(before + "问题,别的答案。\n".encode())
    held = held_out_rows(
        desk / "run", load_tokenizer(desk / "model"), data=None, max_rows=9, score_rows=0, data_settings={}
    )
    rows.write_bytes(before)
    assert held == f"{rows} is not the file any more that the run was trained on"
