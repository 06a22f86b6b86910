"""Quantised layers: their arithmetic, their gradients, and what is refused by name."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from closeness import assert_close
from glmtune.adapters.store import Card, load_adapter, save_trained
from glmtune.errors import CheckpointError, ConfigError
from glmtune.load import load_model
from glmtune.methods import apply_method, trainable_line
from glmtune.models import ChatGLMForConditionalGeneration, load_base
from glmtune.models.quant import QuantizedLinear, dequantise, pack, quantise, quantised_layers, unpack
from glmtune.recipe import AdaLora, Full, Lora
from models import random_rows, tiny_folder, tiny_model, tiny_v1_folder
from proofs import edit_card

GOLDENS = Path(__file__).parents[2] / "goldens" / "v3"
IDS = torch.tensor([[5, 6, 7, 8, 9]])
BOTH = pytest.mark.parametrize("bits", [8, 4])
WEIGHTS = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5).map(lambda pairs: 2 * pairs)),
    elements=st.floats(-100, 100, width=32),
)


def quantised(bits: int, **settings: Any) -> ChatGLMForConditionalGeneration:
    return tiny_model(**settings).quantize(bits)


def dense_twin(model: ChatGLMForConditionalGeneration) -> ChatGLMForConditionalGeneration:
    """The dense model with the quantised one's weights."""
    twin = tiny_model()
    worth = {f"{name}.weight": layer.dequantise() for name, layer in quantised_layers(model).items()}
    kept = {name: x for name, x in model.state_dict().items() if not name.endswith(".weight_scale")}
    twin.load_state_dict(kept | worth)
    return twin


# Arithmetic


def test_every_pair_of_int4_codes_is_packed_and_unpacked_unchanged() -> None:
    pairs = torch.cartesian_prod(*2 * [torch.arange(-8, 8, dtype=torch.int8)])
    assert torch.equal(unpack(pack(pairs)), pairs)
    assert pack(pairs).unique().numel() == 256


def test_the_even_column_lies_in_the_high_bits() -> None:
    assert pack(torch.tensor([[1, 2, -1, 7]], dtype=torch.int8)).tolist() == [[0x12, 0xF7 - 256]]


def test_an_odd_row_is_not_packed() -> None:
    with pytest.raises(ConfigError, match="3 inputs, an odd number"):
        quantise(torch.ones(2, 3), 4)


@BOTH
@given(values=WEIGHTS)
def test_a_weight_is_at_most_half_a_scale_off(bits: int, values: np.ndarray) -> None:
    weight = torch.from_numpy(values)
    codes, scale = quantise(weight, bits)
    off = (weight.double() - dequantise(codes, scale, bits).double()).abs()
    tiny = torch.finfo(torch.float32).tiny  # below it a scale has lost digits
    assert (off <= scale[:, None].double() * (0.5 + 1e-4) + tiny).all()


@BOTH
@given(values=WEIGHTS)
def test_quantising_what_quantised_weights_are_worth_gives_the_same_codes(
    bits: int, values: np.ndarray
) -> None:
    weight = torch.from_numpy(values)
    weight[weight.abs() < 1e-30] = 0  # scales of lost digits are another matter
    codes, scale = quantise(weight, bits)
    again, scale_again = quantise(dequantise(codes, scale, bits), bits)
    assert torch.equal(again, codes)
    assert ((scale_again - scale).abs() <= 1e-6 * scale).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_of_zeros_and_of_the_smallest_numbers_are_finite(bits: int, dtype: torch.dtype) -> None:
    weight = torch.tensor([[0, 0], [1, -1], [180, -100]], dtype=dtype) * torch.finfo(dtype).smallest_normal
    weight[2] /= 1024
    codes, scale = quantise(weight, bits)
    largest = 2 ** (bits - 1) - 1
    assert scale.isfinite().all()
    assert ((codes if bits == 8 else unpack(codes)).abs() <= largest).all()
    assert dequantise(codes, scale, bits)[0].tolist() == [0, 0]


def test_the_largest_bf16_weight_of_a_row_keeps_its_sign() -> None:
    """0.6640625 is 127.25 scales; officially its code wraps to -128."""
    codes, _ = quantise(torch.tensor([[0.6640625, -0.1]], dtype=torch.bfloat16), 8)
    assert codes[0, 0] == 127


@BOTH
def test_a_large_weight_is_quantised_like_its_rows(bits: int) -> None:
    weight = torch.randn(2500, 8)
    codes, scale = quantise(weight, bits)
    for i in (0, 1023, 1024, 2499):
        row_codes, row_scale = quantise(weight[i : i + 1], bits)
        assert torch.equal(codes[i], row_codes[0])
        assert scale[i] == row_scale[0]


# The layer


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_dense_layer_of_the_same_worth(bits: int, bias: bool) -> None:
    layer = QuantizedLinear(nn.Linear(16, 24, bias=bias), bits)
    x = torch.randn(2, 3, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    dense_bias = layer.bias.detach().clone().requires_grad_() if bias else None
    ours, theirs = layer(x), functional.linear(y, layer.dequantise(), dense_bias)
    assert_close(ours, theirs)
    seed = torch.randn_like(ours)
    ours.backward(seed)
    theirs.backward(seed)
    assert_close(x.grad, y.grad)
    if dense_bias is not None:
        assert_close(layer.bias.grad, dense_bias.grad)


@BOTH
def test_nothing_dense_is_kept_for_the_backward_pass(bits: int) -> None:
    layer = QuantizedLinear(nn.Linear(64, 64), bits)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        layer(torch.randn(1, 2, 64, requires_grad=True))
    assert not [x for x in kept if x.is_floating_point() and x.numel() >= 64 * 64]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casts_reach_scales_and_bias_but_never_the_codes(bits: int, dtype: torch.dtype) -> None:
    layer = QuantizedLinear(nn.Linear(16, 8), bits)
    codes = layer.weight.clone()
    layer.half().float().to(torch.bfloat16).to(dtype)
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.weight, codes)
    assert {layer.weight_scale.dtype, layer.bias.dtype} == {dtype}
    assert layer(torch.randn(2, 16, dtype=dtype)).dtype == dtype


def test_activations_may_be_of_another_type_than_the_scales() -> None:
    layer = QuantizedLinear(nn.Linear(16, 8).half(), 8)
    x = torch.randn(2, 16)
    exact = functional.linear(x, layer.dequantise().float(), layer.bias.float())
    assert_close(layer(x), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


# The model


@BOTH
def test_only_the_four_linear_layers_of_each_block_are_quantised(bits: int) -> None:
    model = quantised(bits)
    names = {name.rpartition(".")[2] for name in quantised_layers(model)}
    assert names == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert len(quantised_layers(model)) == 4 * model.config.num_layers
    assert not isinstance(model.get_output_embeddings(), QuantizedLinear)


@BOTH
def test_quantising_twice_changes_nothing_and_other_bits_are_refused(bits: int) -> None:
    model = quantised(bits)
    before = copy.deepcopy(model.state_dict())
    assert model.quantize(bits) is model
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    with pytest.raises(ConfigError, match=f"this model is int{bits} already"):
        model.quantize(12 - bits)
    with pytest.raises(ConfigError, match="weights have 8 or 4 bits"):
        tiny_model().quantize(3)


def test_a_model_with_an_adapter_on_it_is_not_quantised() -> None:
    tuned = apply_method(tiny_model(), Lora(r=2))
    with pytest.raises(ConfigError, match=r"query_key_value has an adapter on it") as raised:
        tuned.quantize(8)
    assert raised.value.hint == "quantise the model first, then put the adapter on it"


def with_an_odd_layer(model: Any) -> Any:
    mlp = model.transformer.encoder.layers[1].mlp
    mlp.dense_4h_to_h = torch.nn.Linear(mlp.dense_4h_to_h.in_features - 1, 32, bias=False)
    return model


def with_an_adapter_on_the_last_layer(model: Any) -> Any:
    settings = peft.LoraConfig(r=2, target_modules=["query_key_value"], layers_to_transform=[1])
    return peft.get_peft_model(model, settings).get_base_model()


@pytest.mark.parametrize("spoil", [with_an_odd_layer, with_an_adapter_on_the_last_layer])
def test_a_model_that_cannot_be_quantised_is_left_as_it_was(spoil: Callable[[Any], Any]) -> None:
    model = spoil(tiny_model())
    before = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with pytest.raises(ConfigError, match=r"layers\.1\."):
        model.quantize(4)
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == before
    assert not model.config.quantization_bit


@BOTH
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_chatglm_6b_is_quantised_alike_while_loading_and_after(
    bits: int, stored: torch.dtype, tmp_path: Path
) -> None:
    folder = tiny_v1_folder(tmp_path / "v1", dtype=stored)
    loaded = load_base(folder, dtype=stored, device="cpu", quant=f"int{bits}").state_dict()
    after = load_base(folder, dtype=stored, device="cpu").quantize(bits).state_dict()
    assert {tensor.dtype for name, tensor in loaded.items() if "weight_scale" in name} == {torch.float16}
    assert loaded.keys() == after.keys()
    assert all(loaded[name].dtype == x.dtype and torch.equal(loaded[name], x) for name, x in after.items())


@BOTH
def test_a_model_made_from_a_quantised_config_works(bits: int) -> None:
    model = tiny_model(quantization_bit=bits)
    assert len(quantised_layers(model)) == 8
    assert model(IDS).logits.isfinite().all()
    assert_close(dense_twin(model)(IDS).logits, model(IDS).logits)


@BOTH
def test_what_is_saved_opens_again_the_same_in_every_way(bits: int, tmp_path: Path) -> None:
    model = quantised(bits)
    model.save_pretrained(tmp_path)
    expected = model(IDS).logits
    again = quantised(bits, seed=7)
    again.load_state_dict(model.state_dict())
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    for other in (again, opened, load_base(tmp_path, dtype="fp32", device="cpu")):
        assert torch.equal(other(IDS).logits, expected)
        assert other.state_dict().keys() == model.state_dict().keys()


@BOTH
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_lora_step_is_that_of_the_dense_model_of_the_same_worth(bits: int, checkpointing: bool) -> None:
    base = quantised(bits)
    models = [base, dense_twin(base)]
    targets = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    losses = []
    for i, model in enumerate(models):
        torch.manual_seed(3)
        models[i] = tuned = apply_method(model, Lora(r=4, dropout=0.0, target_modules=targets)).train()
        if checkpointing and i == 0:
            tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
        for row in random_rows(3):
            ids, labels = (torch.from_numpy(x).long()[None] for x in (row.input_ids, row.labels))
            loss = tuned(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert_close(losses[0], losses[1])
    ours, theirs = (
        {n: p for n, p in model.named_parameters() if p.requires_grad and "lora" in n} for model in models
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) == 16
    assert_close(list(ours.values()), [theirs[name] for name in ours])


# What is refused


def test_a_quantised_model_is_not_tuned_whole() -> None:
    with pytest.raises(ConfigError, match=r"method.name: full, but the model is quantised"):
        apply_method(quantised(8), Full())


LOW_RANK = {
    "lora": Lora(r=2),
    "dora": Lora(r=2, use_dora=True, use_rslora=True),
    "adalora": AdaLora(init_r=3, target_r=2),
}


@BOTH
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("method", LOW_RANK)
def test_an_adapter_is_not_merged_into_codes(bits: int, safe: bool, method: str, tmp_path: Path) -> None:
    tuned = apply_method(quantised(bits), LOW_RANK[method])
    save_trained(tuned, tmp_path, Card(base="/base", template="chatglm3", method={}))
    in_peft_alone = peft.PeftModel.from_pretrained(quantised(bits), str(tmp_path))
    for model in (tuned, load_adapter(quantised(bits), tmp_path), in_peft_alone):
        before = {name: layer.weight.clone() for name, layer in quantised_layers(model).items()}
        with pytest.raises(ConfigError, match="cannot be merged into its codes"):
            model.merge_and_unload(safe_merge=safe)
        with pytest.raises(ConfigError, match="cannot be merged into its codes"):
            model.merge_adapter(safe_merge=safe)
        assert all(torch.equal(x.weight, before[name]) for name, x in quantised_layers(model).items())


@BOTH
def test_codes_stay_codes_wherever_they_come_from_and_go(bits: int, tmp_path: Path) -> None:
    model = quantised(bits)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    again = quantised(bits, seed=7)
    again.load_state_dict(model.state_dict(), assign=True)
    halved = copy.deepcopy(model).half().float()
    for other in (model, opened, again, copy.deepcopy(model), halved):
        for name, layer in quantised_layers(other).items():
            assert torch.equal(layer.weight, quantised_layers(model)[name].weight)
            with pytest.raises(ConfigError, match="codes"):
                layer.weight.data = torch.zeros_like(layer.weight)
            with pytest.raises(ConfigError, match="codes"):
                layer.weight.data += 1
    model.to("meta")  # moving is no arithmetic
    assert all(type(x) is torch.Tensor for x in opened.state_dict().values())


@BOTH
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_reads_what_codes_are_worth(bits: int, dropout: float) -> None:
    settings = Lora(r=4, use_dora=True, dropout=dropout, target_modules=("query_key_value", "dense"))
    base = quantised(bits)
    results = []
    for model in (base, dense_twin(base)):
        torch.manual_seed(3)
        tuned = apply_method(model, settings).train()
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.data += torch.rand(parameter.shape) * 0.3
        logits = tuned(IDS).logits
        logits.square().mean().backward()
        results.append((logits, [p.grad for p in tuned.parameters() if p.requires_grad]))
    for mine, dense in zip(*results, strict=True):
        assert_close(mine, dense)


def test_an_adapter_on_a_dense_base_is_still_merged() -> None:
    tuned = apply_method(tiny_model(), Lora(r=2))
    assert not isinstance(tuned.merge_and_unload(), peft.PeftModel)


@pytest.fixture
def int4(tmp_path: Path) -> Path:
    folder = tmp_path / "int4"
    shutil.copytree(GOLDENS / "ckpt_int4", folder)
    return folder


def edit_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop(folder: Path, name: str) -> None:
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del tensors[name]
    torch.save(tensors, folder / "pytorch_model.bin")


DENSE = "transformer.encoder.layers.1.mlp.dense_4h_to_h"


def test_a_folder_without_a_scale_is_refused_by_name(int4: Path) -> None:
    drop(int4, f"{DENSE}.weight_scale")
    with pytest.raises(CheckpointError, match=rf"pytorch_model.bin: tensor {DENSE}.weight_scale is missing"):
        load_base(int4, device="cpu")
    with pytest.raises(CheckpointError, match=f"{DENSE[12:]} is quantised and lacks a tensor"):
        AutoModelForCausalLM.from_pretrained(int4, trust_remote_code=False)


def test_a_folder_of_other_bits_than_it_says_is_refused(int4: Path) -> None:
    edit_config(int4, quantization_bit=8)
    with pytest.raises(CheckpointError, match=r"has shape \[\d+, \d+\], config.json makes it") as caught:
        load_base(int4, device="cpu")
    assert "quantization_bit" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "open_it"),
    [
        ("ckpt_int8", load_base),
        ("ckpt_int4", load_base),
        # int8 has a dense model's shapes: transformers would cast the codes and only warn of the scales
        ("ckpt_int8", AutoModelForCausalLM.from_pretrained),
    ],
)
@pytest.mark.parametrize("bits", [0, None])
def test_a_quantised_folder_that_does_not_say_so_is_refused(
    name: str, open_it: Any, bits: int | None, tmp_path: Path
) -> None:
    shutil.copytree(GOLDENS / name, tmp_path / name)
    edit_config(tmp_path / name, quantization_bit=bits)
    with pytest.raises(CheckpointError, match="belongs to a pre-quantised model") as caught:
        open_it(tmp_path / name)
    assert "quantization_bit" in caught.value.hint


@pytest.mark.parametrize("bits", [3, "4", True])
def test_other_bits_are_refused_by_name(int4: Path, bits: Any) -> None:
    edit_config(int4, quantization_bit=bits)
    with pytest.raises(ConfigError, match=r"config.json: quantization_bit must be 8 or 4"):
        load_base(int4, device="cpu")
    with pytest.raises(ConfigError, match="quantization_bit must be 8 or 4"):
        AutoModelForCausalLM.from_pretrained(int4, trust_remote_code=False)


def test_a_dense_folder_that_says_it_is_quantised_is_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDENS / "ckpt", tmp_path / "m")
    edit_config(tmp_path / "m", quantization_bit=8)
    with pytest.raises(CheckpointError, match="is not quantised, though config"):
        load_base(tmp_path / "m", device="cpu")


def test_quantised_embeddings_are_refused_by_name(int4: Path) -> None:
    tensors = torch.load(int4 / "pytorch_model.bin", weights_only=True)
    name = "transformer.embedding.word_embeddings.weight"
    tensors[name] = tensors[name].to(torch.int8)
    (int4 / "pytorch_model.bin").unlink()
    save_file(tensors, int4 / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name} belongs to a pre-quantised model") as caught:
        load_base(int4, device="cpu")
    assert "no embeddings" in caught.value.hint


def test_a_quantised_folder_is_not_quantised_to_other_bits(int4: Path) -> None:
    with pytest.raises(ConfigError, match=r"quant: int8, but .* is int4 already"):
        load_base(int4, device="cpu", quant="int8")
    assert load_base(int4, device="cpu", quant="int4").config.quantization_bit == 4


# Loading


def test_a_model_and_an_adapter_trained_on_it_open_the_same_way(tmp_path: Path) -> None:
    """The card says how the base was quantised; a card of before says nothing, and the base is dense."""
    folder = tiny_folder(tmp_path / "base")
    tuned = apply_method(load_model(folder, quant="int8"), Lora(r=2, dropout=0.0)).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    card = Card(base=str(folder), template="chatglm3", method={}, quant="int8")
    save_trained(tuned, tmp_path / "adapter", card)
    opened = load_model(tmp_path / "adapter")
    assert opened.config.quantization_bit == 8
    assert torch.equal(opened(IDS).logits, tuned(IDS).logits)
    assert load_model(tmp_path / "adapter", quant="int4").config.quantization_bit == 4
    edit_card(tmp_path / "adapter", lambda card: card.pop("quant"))
    assert not load_model(tmp_path / "adapter").config.quantization_bit


@pytest.mark.parametrize(("name", "quant"), [("ckpt", "int4"), ("ckpt_int8", None)])
def test_progress_counts_every_byte_that_is_held(name: str, quant: str | None) -> None:
    told: list[tuple[int, int]] = []
    model = load_base(
        GOLDENS / name, dtype="fp32", device="cpu", quant=quant, progress=lambda *now: told.append(now)
    )
    held = sum(p.nbytes for p in model.parameters())
    assert told[-1] == (held, held)


@BOTH
def test_scales_stay_in_half_where_a_family_has_them_so(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatGLMForConditionalGeneration, "scale_dtype", torch.float16)
    scales = {layer.weight_scale.dtype for layer in quantised_layers(quantised(bits)).values()}
    assert scales == {torch.float16}


def test_the_line_of_trained_parameters_counts_the_weights_that_codes_stand_for() -> None:
    lines = {
        trainable_line(apply_method(model if bits is None else model.quantize(bits), Lora(r=2)))
        for bits in (None, 8, 4)
        for model in [tiny_model()]
    }
    assert len(lines) == 1
