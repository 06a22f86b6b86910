"""Files of runs as nobody left them: each is read, or refused in words; a list of runs goes on."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import Outcomes, fuzzed, json_text, odd_bytes, odd_values
from glmtune import compare, report
from glmtune.evaluation.predictions import PredictionFile
from glmtune.files import read_json
from glmtune.reports.listing import summarise_runs
from glmtune.reports.memory_picture import plot_memory
from glmtune.reports.plots import plot_loss
from glmtune.reports.rank_map import plot_ranks
from glmtune.reports.recorded_run import read_run, read_scores
from glmtune.run_files import read_json_lines

STEPS = [
    {"step": 1, "loss": 2.0, "lr": 1e-3, "step_s": 0.5, "tokens_per_s": 100.0, "peak_memory_gib": 1.5},
    {"step": 2, "loss": 1.0, "lr": 0.0, "step_s": 0.5, "tokens_per_s": 90.0, "peak_memory_gib": 1.5},
]
METRICS = [{"step": 0, "eval_loss": 3.0, "is_settled": False}, *STEPS, {"step": 2, "eval_loss": 1.5}]
SETTINGS = {"model": "m/step-000002", "data": "a.json", "data_sha256": "aa", "max_new_tokens": 8}
FILES: dict[str, Any] = {
    "env.json": {"model": {"name": "glm-tiny"}, "device": "cpu", "train_sha256": "a", "all_parameters": 9},
    "eval.json": {"steps": 2, "best_step": 2, "loss": 1.0},
    "metrics.jsonl": METRICS,
    "data.json": {
        "train": {
            "rows": 9,
            "rows_cut": 1,
            "cuts": {"answer": 1},
            "drops": {},
            "tokens_lost": 5,
            "limit": "8 tokens",
            "most_tokens": 8,
            "tokens": {"p50": 4, "p95": 8, "p99": 8, "longest": 13},
            "histogram": {"width": 2, "counts": [1, 3, 4, 0], "longer": 1},
        },
        "validation": None,
    },
    "memory.json": {
        "device": "cpu",
        "limit": 9,
        "predicted": None,
        "measured": {"weights": 5, "bytes": 5},
        "phases": {"step": {"resident": 7, "anonymous": 6}},
    },
    "samples.jsonl": [{"step": step, "prompt": "你好", "answer": "早"} for step in (0, 2)],
    "ranks.jsonl": [{"step": step, "ranks": {"layers.0.a": 3, "layers.1.a": 2}} for step in (0, 2)],
    "evaluations/e/scores.json": {
        "thudm": {"rouge-l": 1.0, "bleu-4": 2.0, "num_empty": 0},
        "num_rows": 2,
        "turns": [{"turn": turn, "num_rows": 1, "thudm": {"rouge-l": 1.0, "bleu-4": 2.0}} for turn in (1, 2)],
    },
    "evaluations/e/settings.json": SETTINGS,
    "evaluations/e/generated_predictions.txt": [
        {"row": row, "labels": "早上好", "predict": "早", "stopped": True} for row in (0, 1)
    ],
}
NOT_LISTED = ("data.json", "memory.json", "ranks.jsonl", "evaluations/e/generated_predictions.txt")
"""What a list of runs does not read."""
RECIPE = "model: glm-tiny\ndata: {train: a.json}\n"


def _written(value: Any) -> bytes:
    if isinstance(value, list):
        text = "".join(json_text(line, ensure_ascii=False) + "\n" for line in value)
    else:
        text = json_text(value, ensure_ascii=False, indent=2) + "\n"
    return text.encode("utf-8", errors="surrogatepass")


def _write_run(folder: Path) -> None:
    (folder / "evaluations" / "e").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name, value in FILES.items():
        (folder / name).write_bytes(_written(value))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """One file of a run, and what it holds in place of what it did."""
    name = draw(st.sampled_from([*FILES, "metrics.jsonl", "metrics.jsonl"]))
    value = FILES[name]
    if isinstance(value, list):
        number = draw(st.integers(0, len(value) - 1))
        value = [*value[:number], draw(odd_values(value[number])), *value[number + 1 :]]
    else:
        value = draw(odd_values(value))
    return name, draw(odd_bytes(_written(value)))


def _look(run: Path, other: Path) -> None:
    """All that reads a run's files."""
    read_scores(read_run(run))
    PredictionFile(run / "evaluations" / "e", SETTINGS)
    memory = read_json(run / "memory.json", is_ours=True)
    metrics, ranks = (read_json_lines(run / name) for name in ("metrics.jsonl", "ranks.jsonl"))
    compare([run, other])
    if len(str(metrics)) % 4 == 0:
        report([run, other], output=run / "page.html")
    if len(str(metrics)) % 32 == 0:  # a picture takes its time
        plot_loss(metrics, run / "loss.png", title="run")
        plot_memory(memory, metrics, run / "memory.png", title="run")
        plot_ranks(ranks, 2, run / "ranks.png", title="run")


def _look_at_all(count: int) -> Outcomes:
    outcomes = Outcomes()

    @fuzzed(count)
    @given(damaged())
    def check(file: tuple[str, bytes]) -> None:
        name, content = file
        with TemporaryDirectory() as folder:
            run, other = Path(folder) / "runs" / "run", Path(folder) / "runs" / "other"
            _write_run(run)
            _write_run(other)
            (run / name).write_bytes(content)
            outcomes(lambda: _look(run, other))
            assert {entry.path.name for entry in summarise_runs(Path(folder) / "runs")} == {"run", "other"}

    check()
    return outcomes


def test_a_runs_files_are_read_or_refused_in_words() -> None:
    _look_at_all(100).check(least=16)


@pytest.mark.slow
def test_many_more_files_of_runs_are_read_or_refused_in_words() -> None:
    _look_at_all(3000).check(least=500)


def _read_all(count: int) -> Outcomes:
    outcomes = Outcomes()

    @fuzzed(count)
    @given(st.data(), st.booleans())
    def check(data: st.DataObject, is_ours: bool) -> None:
        value = data.draw(odd_values({"a": [1, {"b": "早"}], "c": None, "d": {"e": {"f": 0.5}}}))
        content = data.draw(odd_bytes(_written(value)))
        with TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_bytes(content)
            found = outcomes(lambda: read_json(path, is_ours=is_ours))
        if found is not None:  # whatever was read can be written, shown and read again
            assert json.loads(json.dumps(found).encode()) == found or "nan" in repr(found)

    check()
    return outcomes


def test_json_is_read_or_refused_in_words() -> None:
    _read_all(100).check(least=16)


@pytest.mark.slow
def test_much_more_json_is_read_or_refused_in_words() -> None:
    _read_all(3000).check(least=500)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("x", ":2:1: broken JSON: Expecting value"),
        ("[1]", ":2: holds a list, expected an object"),
        ('{"loss": 1.0}', ":2: 'step' must be a whole number from 0, it is missing"),
        ('{"step": "1"}', ":2: 'step' must be a whole number from 0, got '1'"),
        ('{"step": 1, "loss": "low"}', ":2: 'loss' must be a number, or null, got 'low'"),
        ('{"step": 1, "step": 2}', ":2:13: the key 'step' is given twice"),
        ('{"step": ' + "1" * 5000 + "}", ":2:10: an integer of more than 4,300 digits"),
        (
            '{"step": 1, "x": ' + "[" * 10**5 + "]" * 10**5 + "}",
            ":2:117: lists and objects nested more than 100",
        ),
        ("\ud800", ":2: byte 12 of the file"),
    ],
)
def test_a_junk_line_is_named_and_a_half_written_last_one_is_left_out(
    tmp_path: Path, line: str, fault: str
) -> None:
    _write_run(tmp_path / "bad")
    _write_run(tmp_path / "good")
    path = tmp_path / "bad" / "metrics.jsonl"
    path.write_bytes(f'{{"step":0}}\n{line}\n'.encode(errors="surrogatepass"))
    broken, fine = sorted(summarise_runs(tmp_path), key=lambda entry: entry.path)
    assert broken.state == "broken" and broken.problem.startswith(f"{path}{fault}")
    assert fine.state == "finished"
    path.write_bytes(_written(METRICS)[:-3])
    assert [line["step"] for line in read_json_lines(path)] == [0, 1, 2]


def test_a_line_cut_within_a_character_is_half_written_too(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    whole = _written(FILES["samples.jsonl"])
    path.write_bytes(whole + whole[: whole.index("你".encode()) + 1])
    assert len(read_json_lines(path)) == 2


def test_a_pipe_among_the_files_of_a_run_is_refused(tmp_path: Path) -> None:
    _write_run(tmp_path / "run")
    for name in FILES:
        path = tmp_path / "run" / name
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        (entry,) = summarise_runs(tmp_path)
        assert name in NOT_LISTED or "named pipe" in entry.problem
        path.unlink()
        path.write_bytes(content)
