"""Every verb as a user types it, in processes of their own."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from commands import glmtune
from forks import run_fork
from glmtune.language import Language
from glmtune.recipe.describe import describe
from glmtune.workflows import evaluate
from models import tiny_folder
from proofs import edit_card

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRESS = re.compile(
    r"global step \d+ \( \d+\.\d\d% \) , epoch: \d+, loss: \d+\.\d{5}, speed: \d+\.\d\d step/s, "
    r"ETA: \d\d:\d\d:\d\d, tokens/s: [\d,]+, peak memory: \d+\.\d\d GiB"
)


def train_words(model: Path, *more: str) -> list[str]:
    return [
        f"model={model}", f"data.train={EXAMPLES / 'adverts.jsonl'}", "data.max_tokens=400", "train.steps=4",
        "train.batch_size=4", "train.eval_every=2", "train.log_every=1", "train.lr=1e-2",
        "samples.max_new_tokens=8", "samples.built_in=false", "output=run", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a run trained on it."""
    folder = tmp_path_factory.mktemp("work")
    tiny_folder(folder / "model")
    command = [sys.executable, "-m", "glmtune", "train", *train_words(folder / "model")]
    done = run_fork(command, cwd=folder, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (folder / "train.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def test_training_says_what_it_does(work: Path) -> None:
    text = (work / "train.txt").read_text(encoding="utf-8")
    assert re.search(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d+\.\d{4}", text)
    assert "[gMASK]sop<|user|>" in text  # the first row, decoded
    assert len(PROGRESS.findall(text)) == 4
    assert "global step 4 ( 100.00% )" in text
    assert text.count("Evaluation Loss: ") == 3
    assert "train run time: " in text
    assert "glmtune chat run" in text


def test_a_run_leaves_its_files(work: Path) -> None:
    run = work / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "recipe.yaml", "env.json", "metrics.jsonl", "loss.png", "memory.json", "memory.png", "samples.jsonl",
        "checkpoints", "best", "last", "eval.json",
    }  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["step"] for sample in samples] == [0, 2, 4]
    assert not list(run.rglob("*.partial"))


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(work: Path) -> None:
    before = (work / "run" / "metrics.jsonl").read_bytes()
    done = glmtune("train", *train_words(work / "model"), cwd=work)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2:] == [
        "error: run: this folder is not empty and will not be overwritten",
        "hint: name another with output=..., or go on with it: `glmtune train run --resume`",
    ]
    assert (work / "run" / "metrics.jsonl").read_bytes() == before


def test_the_run_folders_recipe_is_the_run_again(work: Path) -> None:
    done = glmtune("train", "run/recipe.yaml", "output=again", cwd=work)
    assert done.returncode == 0, done.stderr
    first, again = (
        [
            json.loads(line)
            for line in (work / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for name in ("run", "again")
    )
    assert [line.get("loss") for line in again] == [line.get("loss") for line in first]


def test_evaluation_scores_and_goes_on_where_it_was_stopped(work: Path) -> None:
    words = ("evaluate", "run", "--data", EXAMPLES / "adverts.jsonl", "evaluate.max_rows=6",
             "evaluate.max_new_tokens=8", "evaluate.batch_size=4", "--output", "scores")  # fmt: skip
    done = glmtune(*words, cwd=work)
    assert done.returncode == 0, done.stderr
    path = work / "scores" / "generated_predictions.txt"
    whole = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"] for line in whole] == list(range(6))
    assert "6 rows, " in done.stdout
    assert "ended by a stop token" in done.stdout
    path.write_text("\n".join(whole[:2]) + '\n{"row": 2, "la', encoding="utf-8")  # killed while writing
    again = glmtune(*words, cwd=work)
    assert "2 of 6 rows are already answered" in again.stdout
    assert path.read_text(encoding="utf-8").splitlines() == whole
    for word in ("data.loss=last_turn", "dtype=bf16"):
        other = glmtune(*words, word, cwd=work)
        assert other.returncode == 2
        assert "holds predictions of other settings" in other.stderr


@pytest.mark.parametrize("path", ["run", "run/best", "run/checkpoints/step-000002", "model"])
def test_chat_takes_a_model_a_run_or_an_adapter(work: Path, path: str) -> None:
    done = glmtune("chat", path, "--max-new-tokens", 4, cwd=work, typed="你好\nclear\n你是谁\nstop\n")
    assert done.returncode == 0, done.stderr
    name = "model" if path == "model" else "run"
    assert f"欢迎使用 {name} 人工智能助手！" in done.stderr
    assert "输入 clear 以清空对话历史，输入 stop 以终止对话。" in done.stderr
    assert ("adapter verified" in done.stderr) == (path != "model")
    assert "off by" not in done.stderr
    assert done.stdout.count(f"<|{name}|>: ") == 2
    assert "> history cleared" in done.stderr


def test_chat_quantises_a_model_on_demand(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("glmtune")
    logger.addHandler(caplog.handler)
    try:
        words = ("chat", "model", "--quant", "int8", "--max-new-tokens", 2)
        done = glmtune(*words, cwd=work, typed="你好\nstop\n")
    finally:
        logger.removeHandler(caplog.handler)
    assert done.returncode == 0, done.stderr
    assert any("int8 and float32 on cpu" in record.getMessage() for record in caplog.records)


def test_resuming_a_finished_run_trains_nothing_more(work: Path) -> None:
    done = glmtune("train", "again", "--resume", cwd=work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("again: finished, at step 4; to train on from its weights: `glmtune train")


def test_settings_are_listed_with_their_meaning(work: Path) -> None:
    done = glmtune("settings", "train.lr", cwd=work)
    assert done.stdout.startswith("train.lr (float; default empty)")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_without_a_word_every_setting_has_a_line_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: Language, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    *lines, empty, more = glmtune("settings", "--lang", language, cwd=tmp_path).stdout.splitlines()
    assert (empty, "`glmtune settings PART" in more) == ("", True)
    assert max(map(cell_len, lines)) == min(width, 100)
    rows = list(describe(language))
    shown = [line.split()[:2] for line in lines if line]
    for row, (name, default) in zip(rows, shown, strict=True):
        if row.key == "method.name":
            assert name == f"method={row.kind}"
        else:
            assert (name, default) == (row.key, row.default)


BAD = [
    (["train.lrr=1"], "train.lrr: unknown setting", "did you mean train.lr=1?"),
    (["data.train=none.json"], "none.json: cannot be read", "no such file"),
    (["model=nowhere"], "nowhere: no such folder", "folder of a model"),
    (["method.target_modules=[q_proj]"], "no linear layer called 'q_proj'", "query_key_value"),
    (["template=glm4"], "template: 'glm4'", "leave template out"),
    (["data.prompt_column=content", "data.response_column=summery"], "summery", "summary"),
    (["device=gpu"], "device: 'gpu' is unknown", "cpu"),
    (["output=model/config.json"], "is a file, not a folder", "output="),
    (["train.precision=fp16"], "train.precision: fp16 needs a GPU", "train.precision=auto"),
]


@pytest.mark.parametrize(("words", "message", "hint"), BAD, ids=[b[0][0] for b in BAD])
def test_bad_input_ends_in_one_line_a_hint_and_code_2(
    work: Path, words: list[str], message: str, hint: str
) -> None:
    before = sorted(work.rglob("*"))
    done = glmtune("train", *train_words(work / "model", "output=bad", *words), cwd=work)
    assert done.returncode == 2
    error, said = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert said.startswith("hint: ")
    assert hint in said
    assert sorted(work.rglob("*")) == before


def test_help_loads_nothing_heavy() -> None:
    """Neither torch nor what reads files or versions is loaded, so the help is there at once."""
    code = """
import sys
from glmtune.cli import main
sys.argv = ["glmtune", "--help"]
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "numpy", "pydantic", "rich", "yaml", "json", "hashlib", "importlib.metadata"}
heavy |= {"glmtune.files", "glmtune.strict", "glmtune.recipe", "glmtune.data", "glmtune.workflows"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_adapter_whose_base_has_moved_is_told_where_it_is(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(work / "model", tmp_path / "base")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        edit_card(checkpoint, lambda card: card.update(base="/moved/model"))
    words = ("evaluate", "run", "evaluate.max_rows=1", "evaluate.max_new_tokens=2")
    lost = glmtune(*words, cwd=tmp_path)
    assert lost.returncode == 2
    assert "its base model is not at /moved/model" in lost.stderr
    found = glmtune(*words, "--base", tmp_path / "base", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "1 row, " in found.stdout
    chat = glmtune(
        "chat", "run", "--base", tmp_path / "base", "--max-new-tokens", 2, cwd=tmp_path, typed="hi\n"
    )
    assert chat.returncode == 0, chat.stderr


def test_python_evaluates_a_run_with_the_runs_own_settings(work: Path, tmp_path: Path) -> None:
    tuned = [
        "data.system=你是客服",
        "data.source_prefix=问题：",
        "train.steps=1",
        f"output={tmp_path / 'run'}",
    ]
    assert glmtune("train", *train_words(work / "model"), *tuned, cwd=work).returncode == 0
    result = evaluate(
        {
            "model": str(tmp_path / "run"),
            "evaluate": {"max_rows": 1, "max_new_tokens": 2},
            "output": tmp_path / "s",
        }
    )
    assert result.scores["num_rows"] == 1
    known = json.loads((tmp_path / "s" / "settings.json").read_text(encoding="utf-8"))
    assert (known["encoding"]["system"], known["encoding"]["source_prefix"]) == ("你是客服", "问题：")


def test_chat_with_a_system_text_that_the_format_lacks_fails_before_the_talk(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "m", "chatglm2")
    done = glmtune("chat", "m", "--system", "你是客服", "--rounds", 1, cwd=tmp_path, typed="hi\n")
    assert done.returncode == 2
    assert "ChatGLM2 has no system message" in done.stderr
    assert "Human" not in done.stdout + done.stderr
