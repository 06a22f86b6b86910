"""rsLoRA and DoRA: their formulas, what they train, adapters on disk and merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from closeness import assert_close, distance
from glmtune.adapters.store import Card, load_adapter, save_trained
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from glmtune.models.upstream import build_upstream_outline
from glmtune.recipe import AdaLora, Lora
from models import tiny_hf_folder, tiny_model

ALL_FOUR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
IDS = torch.tensor([[5, 6, 7, 8, 9]])
LAYER = "base_model.model.transformer.encoder.layers.0.self_attention.dense"
KINDS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "both": {"use_rslora": True, "use_dora": True},
}


def tuned_model(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """With weights as after training."""
    settings = Lora(r=4, alpha=6, dropout=0.0, target_modules=ALL_FOUR, **KINDS[kind])
    model = apply_method(tiny_model().to(dtype), settings).eval()
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_layer_computes_what_the_papers_say(kind: str) -> None:
    layer = tuned_model(kind).get_submodule(LAYER)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    weight = layer.base_layer.weight + (6 / 2 if "rs" in kind or kind == "both" else 6 / 4) * b @ a
    if kind != "rslora":
        length = layer.lora_magnitude_vector["default"].weight
        weight = length[:, None] * weight / weight.norm(dim=1, keepdim=True)
    x = torch.randn(2, 3, layer.in_features)
    assert_close(layer(x), functional.linear(x, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_they_train_only_their_own_weights_and_those_in_fp32(kind: str) -> None:
    for name, parameter in tuned_model(kind, torch.bfloat16).named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_are_saved_and_loaded_or_merged_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    model = tuned_model(kind)
    save_trained(model, tmp_path, Card(base="/base", template="chatglm3", method={}))
    loaded = load_adapter(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert distance(model(IDS).logits, tiny_model()(IDS).logits) > 1e-2
    merged = loaded.merge_and_unload(safe_merge=True)
    assert_close(merged(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gate_proj", "is also what this model's experts are made of"),
        ("down_proj", "is also what this model's experts are made of"),
        ("gate", "is a Glm4MoeTopkRouter in this model"),
        ("experts", "is a Glm4Moe.* in this model"),
        ("gate_up_proj", r"is a parameter of shape \[4, 32, 32\] in this model"),
        ("query_key_value", "no linear layer called 'query_key_value'"),
        (
            "mlp",
            "mlp is gate_proj, up_proj, down_proj; gate_proj is also what this model's experts are made of",
        ),
        ("all_linear", "all_linear is q_proj, .*, down_proj; gate_proj is also what this model's experts"),
    ],
)
@pytest.mark.parametrize("method", [Lora, AdaLora])
def test_of_a_model_with_experts_the_attention_alone_is_adapted(
    method: Any, name: str, why: str, experts: Path
) -> None:
    model = build_upstream_outline(experts)
    with pytest.raises(ConfigError, match=why) as caught:
        apply_method(model, method(target_modules=("o_proj", name)))
    assert caught.value.hint == "possible are q_proj, k_proj, v_proj, o_proj, lm_head; or a set: attention"


@pytest.mark.parametrize("value", ["all_linear", "all-linear", "all", ["all"]])
def test_all_linear_layers_have_the_names_that_other_programs_give_them(value: object) -> None:
    assert Lora.model_validate({"target_modules": value}).target_modules == ("all_linear",)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf_folder(tmp_path_factory.mktemp("experts"), "GLM-4.5")
