"""Each error's docstring has an example; here each is provoked as a user would."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glmtune
from commands import glmtune as command_line
from glmtune import errors
from models import tiny_folder

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
]


def an_unknown_setting() -> None:
    glmtune.train(model="glm-tiny", train={"lrr": 1e-4})


def write_rows() -> None:
    lines = '{"instruction": "1+1", "output": "2"}\n{"instruction": "1+2", "output": " "}\n'
    Path("my.json").write_text(lines, encoding="utf-8")


def an_empty_answer() -> None:
    write_rows()
    glmtune.train(model="glm-tiny", data="my.json")


def a_path_to_nothing() -> None:
    glmtune.load_model("runs/mine")


def a_package_that_is_not_installed() -> None:
    glmtune.load_model("glm-tiny", quant="nf4")


def a_learning_rate_that_ruins_the_weights() -> None:
    Path("rows.csv").write_text("prompt,response\n" + "问题,答案。\n" * 12, encoding="utf-8")
    glmtune.train(
        model="glm-tiny",
        data="rows.csv",
        method="full",
        dtype="fp32",
        train={"steps": 1, "batch_size": 2, "lr": 1e30, "max_grad_norm": 0},
        samples={"prompts": []},
        quiet=True,
    )


def weights_that_are_no_numbers() -> None:
    model = glmtune.load_model(tiny_folder(Path("model")))
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    engine = glmtune.Engine(model)
    engine.submit(glmtune.Request([5, 6, 7]))
    engine.step()


CAUSES: dict[str, Callable[[], None]] = {
    "ConfigError": an_unknown_setting,
    "DataError": an_empty_answer,
    "CheckpointError": a_path_to_nothing,
    "MissingDependencyError": a_package_that_is_not_installed,
    "TrainingError": a_learning_rate_that_ruins_the_weights,
    "AnswerError": weights_that_are_no_numbers,
}


def example_of(kind: type[Exception]) -> tuple[str, str]:
    """Message and hint of the example in a class's docstring."""
    text = inspect.getdoc(kind) or ""
    found = re.search(r"^error: (.*)\nhint: (.*)$", re.sub(r"\n {4}", " ", text), re.MULTILINE)
    assert found, kind.__name__
    return found[1], found[2]


@pytest.mark.parametrize("name", CAUSES)
def test_the_example_of_an_error_is_what_a_user_gets(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(glmtune.GlmtuneError) as caught:
        CAUSES[name]()
    assert type(caught.value) is getattr(glmtune, name)
    assert (str(caught.value), caught.value.hint) == example_of(type(caught.value))


def test_the_command_line_prints_the_example_of_an_output_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows()
    Path("all.jsonl").write_text("", encoding="utf-8")
    done = command_line("data", "convert", "my.json", "all.jsonl", "--to", "messages", cwd=tmp_path)
    message, hint = example_of(errors.OutputError)
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: {message}", f"hint: {hint}"])


def test_the_tree_names_every_error_and_each_is_public_and_has_an_example() -> None:
    drawn = re.findall(r"^ +(?:[|`]-- )?(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)
    assert all(getattr(glmtune, kind.__name__) is kind for kind in KINDS)
    assert {kind.__name__ for kind in KINDS} == {*CAUSES, "GlmtuneError", "OutputError"}
