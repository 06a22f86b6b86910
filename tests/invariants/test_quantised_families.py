"""Runs on quantised bases of transformers' classes: trained, resumed, opened, verified, scored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from closeness import assert_close, distance
from glmtune import encode_messages, evaluate, train, verify
from glmtune.generate import Sampling, complete
from glmtune.generate.compute import speed_up
from glmtune.info import inspect
from glmtune.load import load_model, load_tokenizer
from glmtune.models.quant import held_quant, quantised_layers
from glmtune.recipe import Recipe, load_recipe
from glmtune.run_files import read_json_lines
from models import tiny_hf_folder
from resumed import assert_same_weights, train_in_parts

ADVERTS = Path(__file__).parents[2] / "examples" / "adverts.jsonl"
CASES = {"GLM-4-hf": "int8", "GLM-4-0414": "nf4", "GLM-4.5": "int4"}
"""Each family in one quantisation: tests/unit/models/test_while_reading.py has each in all."""
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
EXPERTS = {"moe_intermediate_size": 64}


@pytest.fixture(scope="module", params=list(CASES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    experts = EXPERTS if family == "GLM-4.5" else {}
    return tiny_hf_folder(tmp_path_factory.mktemp("hf") / "base", family, **SIZES, **experts)


def recipe(base: Path, quant: str, output: Path) -> Recipe:
    return load_recipe(
        {
            "model": str(base),
            "quant": quant,
            "output": output,
            "method": {"name": "lora", "r": 4, "dropout": 0.1},
            "data": {"train": ADVERTS, "max_tokens": 400, "max_rows": 12, "holdout_rows": 4},
            "train": {"steps": 8, "batch_size": 4, "micro_batch_size": 4, "lr": 3e-2, "eval_every": 4},
            "samples": {"prompts": []},
        }
    )


@pytest.fixture(scope="module")
def run(base: Path, family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(base, CASES[family], folder), quiet=True)
    return folder


def ids_of(path: Path) -> torch.Tensor:
    return torch.tensor([encode_messages(load_tokenizer(path), [{"role": "user", "content": "你好 hello"}])])


def test_the_loss_falls(run: Path) -> None:
    losses = [x["eval_loss"] for x in read_json_lines(run / "metrics.jsonl") if "eval_loss" in x]
    assert losses[-1] < losses[0] - 0.02


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    base: Path, family: str, run: Path, tmp_path: Path
) -> None:
    parts = recipe(base, CASES[family], tmp_path / "parts")
    train_in_parts(parts, stop=4)
    assert_same_weights(run, parts.output)


def test_it_opens_with_the_base_quantised_as_in_training(base: Path, family: str, run: Path) -> None:
    opened = load_model(run, dtype="fp32", device="cpu")
    assert held_quant(opened) == CASES[family]
    untuned, dense = (load_model(base, quant=q, dtype="fp32", device="cpu") for q in (CASES[family], None))
    with torch.no_grad():
        tuned, plain, full = (model(ids_of(run)).logits for model in (opened, untuned, dense))
        with opened.disable_adapter():
            assert torch.equal(opened(ids_of(run)).logits, plain)
    assert distance(tuned, plain) > 1e-2
    assert distance(plain, full) > 1e-3  # of the rounding: codes, not the stored weights


def test_it_is_verified(run: Path) -> None:
    checks = verify(run, quiet=True)
    assert any("logit" in f"{check.name} {check.found}" for check in checks)
    assert all(check.is_proven and check.proves_effect for check in checks)


def test_info_names_the_quantisation_and_its_layers(family: str, run: Path) -> None:
    facts = inspect(run)
    quantised = {p.name for p in facts.parameters if p.dtype == CASES[family]}
    assert any(name.endswith("self_attn.q_proj.base_layer.weight") for name in quantised)
    assert not any("experts." in name and "shared" not in name for name in quantised)


def test_its_answers_are_scored(run: Path) -> None:
    result = evaluate({"model": str(run), "evaluate.max_new_tokens": 4}, quiet=True)
    assert result.scores["num_rows"] == 4
    assert 0 <= result.scores["thudm"]["rouge-l"] <= 100


@pytest.mark.parametrize("max_rows", [1, 3])
def test_the_engines_greedy_ids_are_those_of_generate(run: Path, max_rows: int) -> None:
    model = load_model(run, dtype="fp32", device="cpu")
    model.generation_config.eos_token_id = None
    prompts = [[20, 21, 22, 23, 24, 25, 26], [40], [50, 51, 52, 60]]
    expected = [
        model.generate(
            input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=8, pad_token_id=3
        )[0, len(ids) :].tolist()
        for ids in prompts
    ]  # fmt: skip
    greedy = Sampling(do_sample=False, max_new_tokens=8)
    assert complete(model, prompts, greedy, stop_ids=[], max_rows=max_rows) == expected


@pytest.mark.skipif(torch.backends.quantized.engine != "x86", reason="W8A8 needs an x86 CPU")
def test_w8a8_products_are_those_of_the_dense_model_of_the_same_worth(base: Path, family: str) -> None:
    model: Any = load_model(base, quant=CASES[family], dtype="fp32", device="cpu")
    twin = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, layer in quantised_layers(model).items():
            twin.get_submodule(name).weight.copy_(layer.dequantise())
        fast = [speed_up(each)(ids_of(base)).logits for each in (model, twin)]
    assert_close(*fast)
