"""`glmtune info`, as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands import glmtune
from glmtune.adapters.store import Card, save_trained
from glmtune.families import FAMILIES
from glmtune.load import load_model
from glmtune.methods import apply_method
from glmtune.recipe import AdaLora, Freeze, Lora, Ptuning
from models import tiny_folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    tiny_folder(folder / "model")
    return folder


def test_a_folder_is_told_within_80_columns(work: Path) -> None:
    done = glmtune("info", "model", cwd=work)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "  template         chatglm3 (" in done.stdout
    assert "</s> 2, <|user|> " in done.stdout
    assert "transformer.encoder.layers.{0..1}" in done.stdout
    assert "    attention" in done.stdout
    assert " ".join(FAMILIES["ChatGLM2/ChatGLM3"].sign.split()[:4]) in done.stdout


def test_every_name_is_listed_and_what_is_trained_is_marked(work: Path) -> None:
    done = glmtune("info", "model", "method.r=2", "--names", cwd=work)
    assert done.returncode == 0, done.stderr
    marked = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("* ")]
    assert marked == [
        f"base_model.model.transformer.encoder.layers.{layer}.self_attention.query_key_value.lora_{ab}.default.weight"
        for layer in (0, 1)
        for ab in "AB"
    ]
    assert done.stdout.splitlines()[-1].startswith("trainable params: ")
    plain = glmtune("info", "model", cwd=work).stdout
    assert "*" not in plain
    assert "trainable" not in plain


def test_a_recipes_method_is_shown_too(work: Path) -> None:
    (work / "full.yaml").write_text("method: full\nmodel: elsewhere\n", encoding="utf-8")
    done = glmtune("info", "model", "--recipe", "full.yaml", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "trainable%: 100.0000" in done.stdout


def test_json_says_the_same(work: Path) -> None:
    done = glmtune("info", "model", "method=lora", "--json", cwd=work)
    found = json.loads(done.stdout)
    assert (found["family"], found["template"], found["kind"]) == ("ChatGLM2/ChatGLM3", "chatglm3", "model")
    assert found["trainable"] == glmtune("info", "model", "method=lora", cwd=work).stdout.splitlines()[-1]
    assert sum(part["count"] for part in found["parts"]) == found["num_parameters"]


def test_a_folder_without_weights_and_tokenizer_says_so(work: Path) -> None:
    (work / "bare").mkdir()
    (work / "bare" / "config.json").write_bytes((work / "model" / "config.json").read_bytes())
    done = glmtune("info", "bare", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "no weights here" in done.stdout
    assert "none: tokenizer.model: the vocabulary file is missing" in done.stdout
    assert "counted from config.json" in done.stdout


@pytest.mark.parametrize(
    ("card", "method", "lines"),
    [
        ({}, Ptuning(num_prefix_tokens=3), ("ptuning, num_prefix_tokens 3, projection no", "192 parameters")),
        ({}, Freeze(num_layers=1), ("freeze, num_layers 1", " parameters, in layer 1")),
        (
            {"quant": "int4"},
            Lora(r=2),
            ("lora, alpha 32.0", "quant            int4: its base is quantised so"),
        ),
        ({}, AdaLora(init_r=3, target_r=2), ("adalora, ", "ranks 3 on average (min")),
    ],
)
def test_a_trained_folder_tells_its_method_and_what_was_trained(
    work: Path, tmp_path: Path, card: dict[str, str], method: Any, lines: tuple[str, ...]
) -> None:
    tuned = apply_method(load_model(work / "model", quant=card.get("quant")), method)
    facts = {"base": str(work / "model"), "template": "chatglm3", "method": method.model_dump(mode="json")}
    save_trained(tuned, tmp_path, Card(**facts, **card))
    done = glmtune("info", tmp_path, cwd=work)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert line in done.stdout
    assert "warning" not in done.stdout


@pytest.mark.parametrize("quant", ["int4", "nf4"])
def test_a_run_on_a_quantised_base_shows_its_weights_as_they_are_opened(
    work: Path, tmp_path: Path, quant: str
) -> None:
    tuned = apply_method(load_model(work / "model"), Lora(r=2))
    facts = {"base": str(work / "model"), "template": "chatglm3", "method": {"name": "lora", "r": 2}}
    save_trained(tuned, tmp_path, Card(**facts, quant=quant))
    done = glmtune("info", tmp_path, "--names", cwd=work)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.split()[-1].endswith("weight")]
    types = {words[-1]: words[-2] for words in lines}
    block = "base_model.model.transformer.encoder.layers.0."
    assert types[f"{block}self_attention.query_key_value.base_layer.weight"] == quant
    assert types[f"{block}mlp.dense_h_to_4h.weight"] == quant
    assert types["base_model.model.transformer.output_layer.weight"] == "fp32"
    assert types[f"{block}self_attention.query_key_value.lora_A.default.weight"] == "fp32"
    assert f"opened as {quant}" in " ".join(done.stdout.split())


def test_a_foreign_tokenizer_is_a_warning(work: Path) -> None:
    other = tiny_folder(work / "other")
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 77}), encoding="utf-8")
    done = glmtune("info", "other", cwd=work)
    assert done.returncode == 0
    assert "warning: the tokenizer is not this model's: " in done.stdout


def test_only_method_settings_are_taken(work: Path) -> None:
    done = glmtune("info", "model", "train.lr=1", cwd=work)
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "error: train.lr=1: not a setting of this command",
    )
    done = glmtune("info", "model", "method.target_modules=q_proj", cwd=work)
    assert done.returncode == 2
    assert "hint: possible are query_key_value, " in done.stderr
