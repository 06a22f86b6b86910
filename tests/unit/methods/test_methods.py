"""What is trained, what is kept, and adapters on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import distance
from glmtune.adapters.store import Card, load_adapter, read_card, restore_trained, save_trained
from glmtune.errors import CheckpointError, ConfigError
from glmtune.methods import METHODS, apply_method, trainable_line
from glmtune.models import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmtune.recipe import Freeze, Full, Lora, Ptuning, TrainedPart
from glmtune.recipe.method import METHOD_SETTINGS
from models import tiny_model

CARD = Card(base="/base", template="chatglm3", method={"name": "lora"})
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def tuned_model(seed: int = 0) -> torch.nn.Module:
    """LoRA with non-zero B, as after training."""
    model = apply_method(tiny_model(seed), Lora(r=4, dropout=0.0)).eval()
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def test_every_method_that_has_settings_has_a_row() -> None:
    assert METHODS.keys() == METHOD_SETTINGS.keys()
    choosing = {name for name, row in METHODS.items() if row.choose}
    assert choosing == {name for name, its in METHOD_SETTINGS.items() if its.kept is TrainedPart.WEIGHTS}


def test_lora_on_a_published_chatglm3_counts_its_parameters_without_weights() -> None:
    config = ChatGLMConfig(
        num_layers=28, padded_vocab_size=65024, hidden_size=4096, ffn_hidden_size=13696, kv_channels=128,
        num_attention_heads=32, add_qkv_bias=True, multi_query_attention=True, multi_query_group_num=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = apply_method(ChatGLMForConditionalGeneration(config), Lora(r=8))
    assert trainable_line(model) == (
        "trainable params: 1,949,696 || all params: 6,245,533,696 || trainable%: 0.0312"
    )


def test_lora_trains_only_its_own_weights_and_those_in_fp32() -> None:
    model = apply_method(tiny_model().to(torch.bfloat16), Lora(r=4))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def test_full_trains_everything_in_fp32() -> None:
    model = apply_method(tiny_model().to(torch.bfloat16), Full())
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(True, torch.float32)}


def test_an_unknown_target_is_answered_with_the_valid_names() -> None:
    with pytest.raises(ConfigError, match="no linear layer called 'q_proj'") as caught:
        apply_method(tiny_model(), Lora(target_modules=("q_proj",)))
    assert "query_key_value, dense, dense_h_to_4h, dense_4h_to_h, output_layer" in caught.value.hint


def test_an_adapter_that_is_saved_and_loaded_gives_the_same_logits(tmp_path: Path) -> None:
    model = tuned_model()
    save_trained(model, tmp_path, CARD)
    loaded = load_adapter(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert distance(loaded(IDS).logits, tiny_model()(IDS).logits) > 1e-2
    card = read_card(tmp_path)
    assert card is not None and card.norm and card.weights_sha256 and card.adapter_config["r"] == 4
    assert replace(card, norm=None, weights_sha256="", adapter_config={}, files={}) == CARD


def test_trained_weights_are_put_back_into_a_model_of_the_same_method(tmp_path: Path) -> None:
    save_trained(tuned_model(), tmp_path, CARD)
    fresh = apply_method(tiny_model(), Lora(r=4, dropout=0.0)).eval()
    restore_trained(fresh, tmp_path)
    torch.testing.assert_close(fresh(IDS).logits, tuned_model()(IDS).logits, rtol=0, atol=0)


def damage(tensors: dict[str, torch.Tensor], fault: str) -> dict[str, torch.Tensor]:
    name = next(iter(tensors))
    tensor = tensors.pop(name)
    if fault == "renamed":
        tensors["base_model.model.nowhere.lora_A.weight"] = tensor
    if fault == "misshapen":
        tensors[name] = tensor[:, :-1].contiguous()
    return tensors


FAULTS = ["missing", "renamed", "misshapen", "truncated"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_file_with_a_fault_is_refused(tmp_path: Path, fault: str, suffix: str) -> None:
    save_trained(tuned_model(), tmp_path, CARD)
    tensors = damage(load_file(tmp_path / "adapter_model.safetensors"), fault)
    (tmp_path / "adapter_model.safetensors").unlink()
    path = tmp_path / f"adapter_model.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError) as caught:
        load_adapter(tiny_model(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("settings", [Lora(r=4, dropout=0.0), Full()])
def test_a_checkpoint_with_a_fault_is_not_resumed_from(
    tmp_path: Path, fault: str, settings: Lora | Full
) -> None:
    save_trained(apply_method(tiny_model(), settings), tmp_path, CARD)
    (path,) = tmp_path.glob("*.safetensors")
    save_file(damage(load_file(path), fault), path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        restore_trained(apply_method(tiny_model(), settings), tmp_path)


@pytest.mark.parametrize("settings", [Lora(r=4, dropout=0.0), Ptuning(), Freeze(num_layers=1)], ids=repr)
def test_weights_that_are_not_those_of_the_card_are_not_resumed_from(tmp_path: Path, settings: Any) -> None:
    card = replace(CARD, method=settings.model_dump(mode="json"))
    save_trained(apply_method(tiny_model(), settings), tmp_path, card)
    restore_trained(apply_method(tiny_model(), settings), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="not the weights that were saved: their hash is") as caught:
        restore_trained(apply_method(tiny_model(), settings), tmp_path)
    assert str(tmp_path) in str(caught.value) and "train anew" in caught.value.hint


def test_an_adapter_without_weights_is_refused_and_nobody_is_asked_for_them(tmp_path: Path) -> None:
    save_trained(tuned_model(), tmp_path, CARD)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_adapter(tiny_model(), tmp_path)


def test_an_adapter_of_another_kind_is_named(tmp_path: Path) -> None:
    save_trained(tuned_model(), tmp_path, CARD)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("LORA", "FOO"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="peft_type is 'FOO'"):
        load_adapter(tiny_model(), tmp_path)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        load_adapter(tiny_model(), tmp_path)
