"""A command line that click refuses ends as our own errors do."""

import sys
from pathlib import Path

import pytest

from glmtune.cli import main

MISUSES = {
    "evaluate glm-tiny --data": "evaluate: option '--data' requires an argument",
    "data convert a --to": "data convert: option '--to' requires an argument",
    "compare a --at x": "compare: invalid value for '--at': 'x' is not a valid integer",
    "chat a --nosuch": "chat: no such option '--nosuch'",
    "evaluate glm-tiny --data a --data b": "evaluate: option '--data' takes one path, got 2",
    "data stats a --model b --model c": "data stats: option '--model' takes one path, got 2",
    "nosuch": ": no such command 'nosuch'",
}


@pytest.mark.parametrize("words", MISUSES)
def test_a_misused_verb_says_what_is_wrong_and_where_its_examples_are(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    error, hint = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert error.startswith("error: ")
    assert error.endswith(MISUSES[words])
    assert hint.startswith("hint: `")
    assert hint.endswith(" --help` has examples")


def test_a_setting_that_is_an_option_of_the_verb_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", "chat", "glm-tiny", "device=balanced"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines()[-1] == "hint: did you mean --device balanced?"


CHAT, EXPORT = "chat runs/chatglm3-6b-lora`; runs are: runs/mine", "export runs/chatglm3-6b-lora --to merged`"
UNFINISHED = {
    "compare": ("argument 'RUN RUN...'", "compare runs/lora runs/ptuning`; runs are: runs/mine"),
    "info": ("argument 'PATH'", "info /models/chatglm3-6b`"),
    "chat": ("argument 'PATH'", CHAT),
    "export": ("argument 'PATH'", f"{EXPORT}; runs are: runs/mine"),
    "export glm-tiny": ("option '--to'", EXPORT),
    "verify": ("argument 'PATH'", "verify runs/chatglm3-6b-lora`; runs are: runs/mine"),
    "evaluate": ("argument 'PATH'", "evaluate runs/chatglm3-6b-lora"),
    "data stats": ("argument 'FILE...'", "data stats my.json`"),
    "data convert a b": ("option '--to'", "data convert chats.json chats.jsonl --to messages`"),
}


@pytest.mark.parametrize("words", UNFINISHED)
def test_an_unfinished_line_gets_one_to_type_and_the_runs_there_are(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("model: glm-tiny\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["glmtune", *words.split()])
    with pytest.raises(SystemExit):
        main()
    error, hint = capsys.readouterr().err.splitlines()
    message, line = UNFINISHED[words]
    assert error.endswith(f": missing {message}")
    assert hint.startswith(f"hint: for example `glmtune {line}")


LED_ON = {
    "server": "it is `glmtune serve RUN`: OpenAI's interface",
    "webui": "it is `glmtune web PATH`",
    "finetune": "it is `glmtune train model=MODEL data.train=FILE`",
    "infer": "`glmtune evaluate PATH --data FILE` a file of rows",
    "merge": "it is `glmtune export RUN --to merged`",
    "quantize": "it is `glmtune export PATH --to int4`",
    "chat glm-tiny --temp 0": "did you mean --temperature or --template?",
    "chat glm-tiny --max-new 9": "did you mean --max-new-tokens?",
    "train model=m data.train=d data.validation_split=0.1": "data.holdout_rows=... rows; without it 5 %",
    "train model=m data.train=d lora.r=16": "did you mean method.r=16?",
    "train model=m data.train=d training_args.learning_rate=0.1": "here that is train.lr=0.1",
    "chat runs/chatglm3-6b-lora": "give the folder of a model",
    "--version_": "did you mean --version?",
    "model=/m": "the verb comes first: `glmtune train model=/m`",
    "recipes/lora.yaml": "the verb comes first: `glmtune train recipes/lora.yaml`",
    "train --learning_rate 2e-4": "settings are typed without dashes: here that is train.lr=...",
    "train --model m": "settings are typed without dashes: did you mean model=...?",
    "train --pre-seq-len 128": "here that is method=ptuning method.num_prefix_tokens=...",
    "export glm-tiny --to gguf --output o": "makes it of a merged folder: --to merged; see docs/export.md",
    "export glm-tiny --to mergd --output o": "did you mean --to merged?",
    "settings learning_rate": "here that is train.lr=...",
    "settings train.lrr": "did you mean `glmtune settings train.lr`?",
    "chat nowhere": "give the folder of a model",
    "chat glm-tiny --template glm4": "leave template out",
    "chat glm-tiny --device gpu": "--device auto, --device cpu, --device cuda or --device cuda:1",
    "chat glm-tiny --temperature -1": "for example --temperature 0.8",
    "chat glm-tiny --seed 99999999999999999999999": "for example --seed 42",
    "evaluate glm-tiny": "name the file: --data FILE",
    "train runs/nosuch --resume": "as `glmtune runs` lists them; a model: model=runs/nosuch",
    "train glm-tiny": "a model: model=glm-tiny",
    "train rows.json": "rows go in as data.train=rows.json",
    "train nosuch.yaml": "`glmtune train model=MODEL data.train=FILE`",
    "train data.train = rows.json": "write it without spaces: data.train=...",
    "chat glm-tinny": "did you mean glm-tiny?",
    "chat C:\\models\\glm": "finds that at /mnt/c/models/glm",
}


@pytest.mark.parametrize("words", LED_ON)
def test_words_that_mean_something_else_here_are_led_on(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["glmtune", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    *_, hint = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert hint.startswith("hint: ")
    assert LED_ON[words] in hint


def test_help_names_every_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["glmtune", "--help"])
    main()
    shown = " ".join(capsys.readouterr().out.split())
    for family in ("ChatGLM-6B", "ChatGLM2", "ChatGLM3", "GLM-4", "GLM-4-0414", "GLM-Z1", "GLM-4.5"):
        assert f"{family}," in shown or f"{family}." in shown
