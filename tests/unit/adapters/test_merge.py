"""A merged weight is what its definition makes, and PEFT makes the same."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from closeness import assert_close
from glmtune.adapters.merge import merged_weights
from glmtune.methods import apply_method
from glmtune.models import load_base
from glmtune.models.shards import read_stored, scan_tensors
from models import tiny_folder
from tuned import settings_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4},
    "rslora": {"name": "lora", "r": 4, "use_rslora": True},
    "dora": {"name": "lora", "r": 4, "use_dora": True},
    "adalora": {"name": "adalora", "init_r": 6, "target_r": 4, "alpha": 20},
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
SHARE = 4 * torch.finfo(torch.float32).eps
"""Of the largest weight: what is added up is larger, and each processor adds it up in its own order."""


def tune(base: Path, what: str) -> PeftModel:
    torch.manual_seed(0)
    model = load_base(base, device="cpu", dtype="fp32")
    if what in METHODS:
        tuned = apply_method(model, settings_of(METHODS[what]))
    else:
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **THEIRS[what]))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) * 0.3
    return tuned


def merge_by_peft(tuned: PeftModel) -> dict[str, Tensor]:
    """By the name in the base, the weights that PEFT changes."""
    merged: dict[str, Tensor] = {}
    for name, part in tuned.get_base_model().named_modules():
        if isinstance(part, BaseTunerLayer):
            alone = deepcopy(part).float()
            alone.merge()
            merged[f"{name}.weight"] = alone.get_base_layer().weight.detach()
        elif isinstance(part, ModulesToSaveWrapper):
            own = part.modules_to_save["default"]
            merged |= {f"{name}.{leaf}": value.detach() for leaf, value in own.named_parameters()}
    return merged


@pytest.mark.parametrize("what", [*METHODS, *THEIRS])
def test_base_and_adapter_are_merged_as_peft_merges_them(what: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", dtype=torch.bfloat16)
    tuned = tune(base, what)
    tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    stored, theirs = scan_tensors(base), merge_by_peft(tuned)
    ours = {name: make(stored[name]) for name, make in merged_weights(tmp_path / "adapter").items()}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        base_own = read_stored(stored[name]).float()
        assert_close(value, theirs[name], share=SHARE)
        allowed = SHARE * theirs[name].abs().max()
        assert ((value - base_own).abs() > 10 * allowed).float().mean() > 0.9, name
