"""An evaluation says what it was computed with, and goes on with that."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import evaluate
from glmtune.generate import compute
from glmtune.workflows.evaluating import turns_table

pytestmark = pytest.mark.skipif(torch.backends.quantized.engine != "x86", reason="W8A8 needs an x86 CPU")

ROWS = [{"prompt": f"类型#裙*颜色#{colour}", "response": "好看的裙子"} for colour in "红蓝白黑"]


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_auto_records_what_it_chose_for_the_rows_to_answer_and_a_second_run_goes_on_with_it(
    gain: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measured(_: Any, rows: int) -> float:
        asked.append(rows)
        return gain if len(asked) == 1 else 1 / gain  # measured again, it would be the other

    monkeypatch.setattr(compute, "measure_gain", measured)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    output = tmp_path / "scores"
    recipe = {
        "model": "glm-tiny",
        "device": "cpu",
        "data": {"test": str(tmp_path / "rows.json")},
        "evaluate": {"compute": "auto", "max_new_tokens": 3},
        "output": output,
    }
    chosen = "fast" if gain > 1 else "exact"
    assert evaluate(recipe).scores["compute"] == chosen
    assert asked == [4]
    assert (
        read(output / "scores.json")["compute"] == read(output / "settings.json")["computed_with"] == chosen
    )
    answers = output / "generated_predictions.txt"
    whole = answers.read_text(encoding="utf-8")
    answers.write_text("".join(whole.splitlines(keepends=True)[:2]), encoding="utf-8")
    assert evaluate(recipe).scores["compute"] == chosen
    assert asked == [4]
    assert evaluate(recipe).scores["compute"] == chosen  # nothing left to answer


def test_exact_is_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:1]), encoding="utf-8")
    recipe = {
        "model": "glm-tiny",
        "data": {"test": str(tmp_path / "rows.json")},
        "evaluate": {"max_new_tokens": 2},
        "output": tmp_path / "scores",
    }
    assert evaluate(recipe).scores["compute"] == "exact"


def test_of_rows_with_a_history_each_turn_has_its_scores(tmp_path: Path) -> None:
    talk = {"prompt": "我叫什么？", "response": "你叫小明。", "history": [["你好，我叫小明。", "你好！"]]}
    (tmp_path / "rows.json").write_text(json.dumps([*ROWS[:2], talk]), encoding="utf-8")
    recipe = {
        "model": "glm-tiny",
        "data": {"test": str(tmp_path / "rows.json")},
        "evaluate": {"max_new_tokens": 3},
        "output": tmp_path / "scores",
    }
    scores = evaluate(recipe, quiet=True).scores
    first, second = scores["turns"]
    assert read(tmp_path / "scores" / "scores.json")["turns"] == [first, second]
    assert [(of["turn"], of["num_rows"]) for of in (first, second)] == [(1, 2), (2, 1)]
    head, *lines = turns_table(scores)
    assert head == ("turn", "rows", "rouge-1", "rouge-2", "rouge-l", "bleu-4")
    assert lines[1] == ("2", "1", *(f"{second['thudm'][name]:.2f}" for name in head[2:]))
