"""A merged weight is what its definition makes, to the last bit of its type, or it is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from glmtune.adapters.merge import merged_weights
from glmtune.errors import OutputError
from glmtune.exports.definition import read_definitions, require_defined, require_same_names
from glmtune.exports.tensors import Group, write_shards
from glmtune.methods import apply_method
from glmtune.recipe.parse import build_recipe
from models import tiny_model

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4},
    "rslora": {"name": "lora", "r": 4, "use_rslora": True},
    "dora": {"name": "lora", "r": 4, "use_dora": True},
    "adalora": {"name": "adalora", "init_r": 6, "target_r": 4},
}
THEIRS: dict[str, dict[str, Any]] = {
    "patterns": {
        "target_modules": ["dense", "query_key_value"],
        "rank_pattern": {"layers.0.self_attention.dense": 3},
        "alpha_pattern": {"dense": 5},
    },
    "embeddings": {"target_modules": ["word_embeddings"]},
    "whole modules": {"target_modules": ["dense"], "modules_to_save": ["output_layer"]},
}


def tune(what: str) -> PeftModel:
    torch.manual_seed(0)
    if what in METHODS:
        tuned = apply_method(tiny_model(), build_recipe({"model": "m", "method": METHODS[what]}).method)
    else:
        tuned = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **THEIRS[what]))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) * 0.01
    return tuned


@pytest.fixture(params=[*METHODS, *THEIRS])
def merged(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Base weights, PEFT's merged ones, and the definitions, by name."""
    tuned = tune(request.param)
    tuned.save_pretrained(str(tmp_path), save_embedding_layers=False)
    changed = {name: give() for name, give in merged_weights(tuned).items()}
    return dict(tiny_model().named_parameters()), changed, read_definitions(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_peft_merges_is_base_and_adapter_by_definition(merged: Any, dtype: torch.dtype) -> None:
    base, changed, defined = merged
    require_same_names(changed, defined)
    for name, value in changed.items():
        require_defined(name, value.to(dtype), base[name], defined[name])


def next_bf16(value: Tensor) -> Tensor:
    """One number moved to the next one that bf16 has."""
    moved = value.to(torch.bfloat16)
    moved.view(torch.int16).view(-1)[7] += 1
    return moved


@pytest.mark.parametrize("wrong", ["one bit of one number", "the base's", "not a number"])
def test_a_weight_that_is_off_by_one_bit_or_has_nothing_merged_is_refused(merged: Any, wrong: str) -> None:
    base, changed, defined = merged
    make: dict[str, Callable[[str], Tensor]] = {
        "one bit of one number": lambda name: next_bf16(changed[name]),
        "the base's": lambda name: base[name].to(torch.bfloat16),
        "not a number": lambda name: changed[name].to(torch.bfloat16) * torch.nan,
    }
    for name in changed:
        with pytest.raises(OutputError, match=rf"{name}: not the weight of base \+ adapter"):
            require_defined(name, make[wrong](name), base[name], defined[name])


def test_a_weight_that_is_left_out_or_merged_unasked_is_named() -> None:
    defined = {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}
    with pytest.raises(OutputError, match=r"b\.weight is not merged, though in the adapter's files"):
        require_same_names({"a.weight": None}, defined)
    with pytest.raises(OutputError, match=r"c\.weight is merged, though not in the adapter's files"):
        require_same_names({"a.weight": None, "b.weight": None, "c.weight": None}, defined)


def test_a_file_that_gives_other_bytes_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, Tensor], path: Path, **settings: Any) -> None:
        first = next(iter(tensors))
        save_file(tensors | {first: -tensors[first]}, path, **settings)

    monkeypatch.setattr("glmtune.exports.tensors.save_file", spoil)
    group = Group({"w": ((3,), torch.float32)}, lambda: {"w": torch.zeros(3)})  # 0 and -0 are other bytes
    with pytest.raises(OutputError, match=r"model\.safetensors: w reads back other than it was written"):
        write_shards([group], tmp_path, 10**6)
    assert load_file(tmp_path / "model.safetensors")
