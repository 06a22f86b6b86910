"""Trained weights are held with the numbers of their files, whatever type the base has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from glmtune import load_model
from glmtune.adapters import peft_factors
from glmtune.adapters.factors import scale_of
from glmtune.adapters.own_weights import PREFIX
from glmtune.adapters.store import load_adapter, restore_trained, stored_tensors
from glmtune.adapters.to_lora import read_as_lora
from glmtune.errors import CheckpointError
from glmtune.methods import apply_method
from glmtune.several import Adapters
from models import tiny_folder
from tuned import METHODS, settings_of, tune

SIZES = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}  # nf4 needs rows of whole blocks of 64
OPENED = [("bf16", None), ("fp16", None), ("fp32", None), ("bf16", "int8"), ("bf16", "nf4")]
"""How the base is opened: its type, its quantisation."""


def held_by(model: Any, name: str = peft_factors.ADAPTER) -> dict[str, Tensor]:
    """The adapter's or the prefix's weights, by their names in files."""
    encoder = getattr(getattr(model, "transformer", None), "prefix_encoder", None)
    return encoder.state_dict(prefix=PREFIX) if encoder else peft_factors.adapter_weights(model, name)


def require_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], values), name


@pytest.mark.parametrize(("dtype", "quant"), OPENED)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_alone_is_held_as_it_is_stored(
    method: str, dtype: str, quant: str | None, tmp_path: Path
) -> None:
    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", method)
    model = load_adapter(load_model(base, dtype=dtype, quant=quant), folder)
    require_equal(held_by(model), stored_tensors(folder))


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_beside_others_is_held_as_it_is_stored(method: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", method)
    adapters = Adapters(base, dtype="bf16")
    adapters.add("one", folder)
    adapters.use("one")
    stored = stored_tensors(folder)
    if "adalora" in METHODS[method].values():
        stored = read_as_lora(folder, stored)[1]  # as plain LoRA: its E in A, its scale in B
    ours = held_by(adapters.model, "glm0")
    require_equal(
        {name if PREFIX in name else f"base_model.model.{name}": p for name, p in ours.items()}, stored
    )


def test_an_adapter_in_half_precision_is_computed_in_fp32_beside_others_too(tmp_path: Path) -> None:
    """As plain LoRA its factors are products of those that are stored."""
    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", "pruned")
    (folder / "glmtune.json").unlink()
    stored = {name: tensor.half() for name, tensor in stored_tensors(folder).items()}
    save_file(stored, folder / "adapter_model.safetensors", {"format": "pt"})
    wide = {name: tensor.float() for name, tensor in stored.items()}
    ours, theirs = (read_as_lora(folder, tensors)[1] for tensors in (stored, wide))
    require_equal(ours, theirs)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pruned"])
def test_weights_that_training_goes_on_from_are_those_that_were_saved(method: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", method)
    model = apply_method(load_model(base, dtype="bf16"), settings_of(METHODS[method]))
    restore_trained(model, folder)
    require_equal(held_by(model), stored_tensors(folder))


@pytest.mark.parametrize("method", ["lora", "pruned"])
def test_a_loader_that_rounds_what_it_holds_is_refused(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def round_all(tuned: Any, name: str = peft_factors.ADAPTER) -> None:
        for parameter in tuned.parameters():
            parameter.data = parameter.data.bfloat16()

    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", method)
    monkeypatch.setattr(peft_factors, "widen_adapter", round_all)
    with pytest.raises(CheckpointError, match="is held with other numbers than the file's"):
        load_model(folder, dtype="bf16")


def test_the_rank_that_the_scale_is_divided_by_is_not_rounded(tmp_path: Path) -> None:
    """bf16 has no 301."""
    base = tiny_folder(tmp_path / "base", **SIZES)
    folder = tune(base, tmp_path / "tuned", "adalora", init_r=301)
    for model in (
        load_adapter(load_model(base, dtype="bf16"), folder),
        apply_method(load_model(base, dtype="bf16"), settings_of({**METHODS["adalora"], "init_r": 301})),
    ):
        layer = model.get_submodule(
            "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value"
        )
        config = model.peft_config[peft_factors.ADAPTER].to_dict()
        scale = layer.scaling[peft_factors.ADAPTER] / (layer.ranknum[peft_factors.ADAPTER] + 1e-5)
        multiplier, divisor = scale_of(config, "any", 301)
        assert float(scale) == pytest.approx(multiplier / divisor, rel=1e-6)
        assert not layer.ranknum[peft_factors.ADAPTER].requires_grad
