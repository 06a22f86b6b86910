"""The guide's table of what each family can do: each cell is tried, and what is refused is refused by it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tools.pages import DOCS
from tools.possible_table import HEADS, PAGES, fill
from torch import nn

from glmtune import encode_messages, train
from glmtune.adapters.card import ADAPTER_FILE
from glmtune.errors import ConfigError
from glmtune.exports.kinds import KINDS
from glmtune.exports.source import find_source
from glmtune.families import FAMILIES, in_transformers
from glmtune.load import load_model, load_tokenizer
from glmtune.methods import apply_method
from glmtune.methods.lora import find_targets
from glmtune.models.quant import held_quant
from glmtune.possible import REFUSALS, REQUESTS
from glmtune.quants import QUANTS
from glmtune.recipe import load_recipe
from glmtune.recipe.method import METHOD_SETTINGS, Lora
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder

WIDE = {"hidden_size": 64, "num_layers": 2}
"""Rows of whole blocks for nf4."""
METHODS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"use_rslora": True}, {"use_dora": True}],
    "adalora": [{}],
    "freeze": [{"num_layers": 1}],
    "full": [{}],
    "ptuning": [{"num_prefix_tokens": 4}, {"num_prefix_tokens": 4, "projection": True}],
}


def make(folder: Path, family: str) -> Path:
    if family == "ChatGLM-6B":
        return tiny_v1_folder(folder, **WIDE, inner_hidden_size=128)
    if FAMILIES[family].is_in_transformers:
        wide = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
        experts = {"moe_intermediate_size": 64} if family == "GLM-4.5" else {}
        return tiny_hf_folder(folder, family, **wide, **experts)
    return tiny_folder(
        folder, "glm4" if family == "GLM-4" else "chatglm3", **WIDE, ffn_hidden_size=64, kv_channels=16
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make(tmp_path_factory.mktemp("family") / "base", family) for family in FAMILIES}


def learns(model: Any, folder: Path) -> bool:
    """Whether a loss has a gradient in what is trained."""
    ids = torch.tensor([encode_messages(load_tokenizer(folder), [{"role": "user", "content": "x"}])])
    model(input_ids=ids, labels=ids).loss.backward()
    return any(p.grad is not None and bool(p.grad.any()) for p in model.parameters() if p.requires_grad)


def tune(folder: Path, method: str, settings: dict[str, Any], quant: str | None = None) -> bool:
    chosen = load_recipe({"model": "m", "method": {"name": method, **settings}}).method
    torch.manual_seed(0)
    model = load_model(folder, quant=quant, dtype="fp32", device="cpu")
    return learns(apply_method(model.train(), chosen), folder)


def test_the_table_knows_every_family_method_quant_and_export() -> None:
    assert REFUSALS.keys() == FAMILIES.keys() == HEADS.keys()
    asked = [f"method={name}" for name in METHODS], [f"quant={name}" for name in QUANTS]
    assert {*asked[0], *asked[1], *(f"--to {name}" for name in KINDS)} == set(REQUESTS)
    assert all(request in REQUESTS for family in REFUSALS.values() for request in family)


@pytest.mark.parametrize("page", PAGES)
def test_the_guide_holds_the_table(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert fill(text, page) == text, "python -m tools.possible_table"


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readmes_short_table_is_the_long_one(readme: str) -> None:
    """Its two columns are the families of our own classes and of transformers'; ✓ and – hold for each."""
    rows = [
        ([f"method={name}" for name in ("lora", "adalora", "freeze", "full")], "| ✓ | ✓ |"),
        (["method=ptuning"], "| ✓ | – |"),
        ([f"quant={name}" for name in QUANTS], "| ✓ | ✓ |"),
        ([], "| ✓ | – |"),  # official folders of codes, which no request asks for
    ]
    for requests, cells in rows:
        for family, row in FAMILIES.items():
            is_possible = cells[2 + 4 * row.is_in_transformers] == "✓"
            assert all((request not in REFUSALS[family]) == is_possible for request in requests)
    table = re.search(
        r"^\| \|.*GLM-4\.6 \|\n.*\n((?:\|.*\n)+)", (DOCS.parent / readme).read_text("utf-8"), re.M
    )
    assert table
    assert [line[-9:] for line in table[1].splitlines()] == [cells for _, cells in rows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_or_is_refused_as_the_table_says(
    folders: dict[str, Path], family: str, method: str
) -> None:
    refusal = REFUSALS[family].get(f"method={method}")
    for settings in METHODS[method]:
        if refusal is None:
            assert tune(folders[family], method, settings)
            continue
        with pytest.raises(ConfigError, match=refusal.problem.format(family=family)):
            tune(folders[family], method, settings)


def test_training_refuses_before_it_opens_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folders["GLM-4-hf"] / name).exists():
            shutil.copy(folders["GLM-4-hf"] / name, tmp_path)
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": "a", "response": "b"}] * 4), encoding="utf-8")
    chosen = {"model": str(tmp_path), "data": {"train": str(rows)}, "method": {"name": "ptuning"}}
    with pytest.raises(ConfigError, match="held by transformers' own class"):
        train({**chosen, "output": tmp_path / "run"})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", QUANTS)
def test_a_base_is_quantised_or_refused_as_the_table_says(
    folders: dict[str, Path], family: str, quant: str
) -> None:
    refusal = REFUSALS[family].get(f"quant={quant}")
    if refusal is None:
        assert held_quant(load_model(folders[family], quant=quant)) == quant
        return
    with pytest.raises(ConfigError, match=refusal.problem.format(family=family)):
        load_model(folders[family], quant=quant)


@pytest.mark.parametrize("family", ["ChatGLM2/ChatGLM3", *in_transformers()])
@pytest.mark.parametrize("quant", QUANTS)
def test_these_methods_train_on_a_quantised_base(folders: dict[str, Path], family: str, quant: str) -> None:
    folder = folders[family]
    for method in ("lora", "adalora", "ptuning"):
        if f"method={method}" not in REFUSALS[family]:
            assert all(tune(folder, method, settings, quant) for settings in METHODS[method])
    assert tune(folder, "freeze", {"patterns": ["*layernorm*"]}, quant)
    for method in ("freeze", "full"):
        with pytest.raises(ConfigError, match="cannot be trained"):
            tune(folder, method, METHODS[method][0], quant)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", KINDS)
def test_an_export_begins_or_is_refused_as_the_table_says(
    folders: dict[str, Path], family: str, to: str, tmp_path: Path
) -> None:
    refusal = REFUSALS[family].get(f"--to {to}")
    needed = {"official-ptuning": "ptuning", "lora-from-adalora": "adalora"}.get(to, "lora")
    found = find_source(folders[family])
    source = replace(found, method=needed, kept=METHOD_SETTINGS[needed].kept)
    if to == "lora-from-adalora":
        (tmp_path / ADAPTER_FILE).write_text('{"peft_type": "ADALORA"}', encoding="utf-8")
        source = replace(source, location=replace(found.location, adapter=tmp_path))
    if refusal is None or refusal.revision:
        KINDS[to].require(source)
        return
    with pytest.raises(ConfigError, match=refusal.problem.format(family=family)):
        KINDS[to].require(source)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_set_of_targets_is_all_linear_layers_of_its_part(family: str, folders: dict[str, Path]) -> None:
    model = load_model(folders[family])
    row = FAMILIES[family]
    in_blocks = {
        name.rpartition(".")[2]: "mlp" if ".mlp." in name else "attention"
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and re.search(r"\.layers\.\d+\.", name)
    }
    for part in ("attention", "mlp"):
        assert set(row.linear_sets[part]) == {name for name, of in in_blocks.items() if of == part}
    if row.experts:
        return  # which test_of_a_model_with_experts refuses
    assert set(find_targets(model, Lora(target_modules=("all_linear",)))) == set(in_blocks)
    assert find_targets(model, Lora(target_modules=("mlp", "attention", row.lora_targets[0]))) == [
        *row.linear_sets["mlp"], *row.linear_sets["attention"],
    ]  # fmt: skip
