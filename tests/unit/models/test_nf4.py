"""NF4 layers against bitsandbytes and their dense twins; what is refused by name."""

import copy
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import glmtune
from closeness import ROUNDING, assert_close
from glmtune.adapters.store import Card, load_adapter, save_trained
from glmtune.errors import ConfigError, MissingDependencyError
from glmtune.load import load_model
from glmtune.methods import apply_method, trainable_line
from glmtune.models import load_base
from glmtune.models.nf4 import Nf4Linear, quantise_to_nf4
from glmtune.models.quant import QuantizedLinear, held_quant, quantised_layers
from glmtune.recipe import Full, Lora
from models import random_rows, tiny_folder, tiny_model, tiny_v1_folder

GOLDENS = Path(__file__).parents[2] / "goldens"
IDS = torch.tensor([[5, 6, 7, 8, 9]])
TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
WHOLE_BLOCKS = {"hidden_size": 64, "ffn_hidden_size": 128, "kv_channels": 16}
FAMILIES = pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def dense_layer(outputs: int, inputs: int, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(outputs + inputs)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def nf4_model(**settings: Any) -> Any:
    model = tiny_model(**WHOLE_BLOCKS, **settings)
    quantise_to_nf4(model)
    return model


def dense_twin(model: Any) -> Any:
    """The dense model with the nf4 one's weights."""
    twin = tiny_model(**WHOLE_BLOCKS)
    worth = {f"{name}.weight": layer.dequantise() for name, layer in quantised_layers(model).items()}
    kept = {name: x for name, x in model.state_dict().items() if name in twin.state_dict()}
    twin.load_state_dict(kept | worth)
    return twin


def lora_step(tuned: Any) -> float:
    """A step of gradient descent on three rows; returns the loss before it."""
    tuned.train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    loss = torch.zeros(())
    for row in random_rows(3):
        ids, labels = (torch.from_numpy(x).long()[None] for x in (row.input_ids, row.labels))
        loss = loss + tuned(ids, labels=labels).loss
    loss.backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= 0.1 * parameter.grad
            parameter.grad = None
    return loss.item()


# Arithmetic


@FLOATS
@pytest.mark.parametrize("shape", [(3, 64), (300, 448), (512, 128), (5, 4096)])
def test_a_weight_is_worth_what_bitsandbytes_makes_of_it_to_the_last_bit(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    dense = dense_layer(*shape, dtype=dtype)
    codes, state = bitsandbytes.functional.quantize_4bit(
        dense.weight.data, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    layer = Nf4Linear(dense)
    assert torch.equal(layer.weight.flatten(), codes.flatten())
    assert torch.equal(layer.dequantise(), bitsandbytes.functional.dequantize_4bit(codes, state))
    assert layer.dequantise().dtype == dtype


def test_a_weight_takes_four_bits_and_an_eighth_and_a_little() -> None:
    layer = Nf4Linear(dense_layer(1024, 4096))
    bits = 8 * sum(parameter.nbytes for parameter in layer.held) / (1024 * 4096)
    assert 4.125 < bits < 4.13


@pytest.mark.parametrize("seed", range(5))
def test_normal_weights_are_kept_better_than_in_int4(seed: int) -> None:
    torch.manual_seed(seed)
    dense = nn.Linear(256, 64)
    nn.init.normal_(dense.weight)
    off = [
        (layer.dequantise() - dense.weight).square().mean()
        for layer in (Nf4Linear(dense), QuantizedLinear(dense, 4))
    ]
    assert off[0] < 0.7 * off[1]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 100.0])
def test_a_weight_is_off_by_half_the_widest_gap_and_what_its_block_is_off(factor: float) -> None:
    """The gap is that from -1 to -0.6962; the weight of the largest magnitude is off as its magnitude is."""
    dense = dense_layer(128, 512)
    weight = (dense.weight.data * factor).view(-1, 64)
    dense.weight.data = weight.view(128, 512)
    worth = Nf4Linear(dense).dequantise().view(-1, 64)
    largest, held = (x.abs().amax(dim=-1, keepdim=True) for x in (weight, worth))
    assert ((weight - worth).abs() <= 0.1519 * largest + (largest - held).abs() + 1e-6 * factor).all()


def test_a_row_of_zeros_stays_finite() -> None:
    dense = dense_layer(4, 64)
    dense.weight.data[2] = 0
    assert Nf4Linear(dense).dequantise().isfinite().all()


# The layer


@FLOATS
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_dense_layer_of_the_same_worth(
    bias: bool, dtype: torch.dtype
) -> None:
    layer = Nf4Linear(dense_layer(24, 128, bias=bias, dtype=dtype))
    x = torch.randn(2, 3, 128, dtype=dtype, requires_grad=True)
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


@FLOATS
def test_casts_reach_the_bias_alone_and_the_layer_is_worth_the_same(dtype: torch.dtype) -> None:
    layer = Nf4Linear(dense_layer(8, 64, bias=True))
    before = layer.dequantise()
    layer.half().float().to(torch.bfloat16).to(dtype)
    assert layer.bias.dtype == dtype
    assert torch.equal(layer.dequantise(), before)
    assert layer(torch.randn(2, 64, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_decides_the_type_of_the_product(held: torch.dtype) -> None:
    layer = Nf4Linear(dense_layer(8, 64, bias=True, dtype=held))
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert_close(x.grad, layer.dequantise(torch.float32).sum(0).expand(2, -1), share=ROUNDING[y.dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_evaluation_changes_nothing_for_the_training_after_it(dtype: torch.dtype) -> None:
    """bitsandbytes' own layer repacks its weight in evaluation, on a CPU with bf16 instructions."""
    layer = Nf4Linear(dense_layer(64, 128, dtype=dtype)).train()
    x = torch.randn(1, 5, 128, dtype=dtype, requires_grad=True)
    before, held = layer(x), copy.deepcopy(layer.state_dict())
    (grad,) = torch.autograd.grad(before.sum(), x)
    layer.eval()
    with torch.inference_mode():
        assert torch.equal(layer(x), before)
    after = layer.train()(x)
    assert torch.equal(after, before)
    assert torch.equal(torch.autograd.grad(after.sum(), x)[0], grad)
    assert all(torch.equal(held[name], tensor) for name, tensor in layer.state_dict().items())


# The model


def test_only_the_four_linear_layers_of_each_block_are_nf4() -> None:
    model = nf4_model()
    assert {name.rpartition(".")[2] for name in quantised_layers(model)} == set(TARGETS)
    before = quantised_layers(model)
    assert len(before) == 4 * model.config.num_layers
    assert held_quant(model) == "nf4"
    quantise_to_nf4(model)  # already so
    assert quantised_layers(model) == before


def family_folder(folder: Path, family: str, **settings: Any) -> Path:
    if family == "chatglm":
        return tiny_v1_folder(folder, hidden_size=64, inner_hidden_size=128)
    return tiny_folder(folder, family, **WHOLE_BLOCKS, **settings)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_native_family_is_quantised_while_it_is_read(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """And so as the loaded model would be, from the stored values, not from those of its type here."""
    folder = family_folder(tmp_path / "m", family, dtype=dtype)
    read = load_model(folder, quant="nf4")
    stored = load_file(folder / "model.safetensors")
    assert len(quantised_layers(read)) == 8
    for name, layer in quantised_layers(read).items():
        dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
        dense.weight.data = stored[f"{name}.weight"]
        made = Nf4Linear(dense)
        assert all(torch.equal(a, b) for a, b in zip(made.held, layer.held, strict=True))
    ids = (
        IDS
        if family != "chatglm"
        else torch.tensor([[5, read.config.gmask_token_id, read.config.bos_token_id]])
    )
    assert read(ids).logits.isfinite().all()


def test_logits_are_those_of_the_dense_model_of_the_same_worth() -> None:
    model = nf4_model()
    assert_close(dense_twin(model)(IDS).logits, model(IDS).logits)


def test_a_state_dict_put_into_another_nf4_model_makes_it_the_same() -> None:
    model, other = nf4_model(), nf4_model(seed=7)
    assert not torch.equal(other(IDS).logits, model(IDS).logits)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model)):
        assert torch.equal(twin(IDS).logits, model(IDS).logits)


def test_progress_counts_every_byte_that_is_held(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = tiny_folder(tmp_path, **WHOLE_BLOCKS)
    model = load_base(folder, device="cpu", quant="nf4", progress=lambda *now: told.append(now))
    held = sum(p.nbytes for p in model.parameters())
    assert told[-1] == (held, held)


def test_the_line_of_trained_parameters_counts_the_weights_that_codes_stand_for() -> None:
    models = (nf4_model(), tiny_model(**WHOLE_BLOCKS))
    assert len({trainable_line(apply_method(model, Lora(r=2))) for model in models}) == 1


def test_opening_says_how_the_blocks_are_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load_model(tiny_folder(tmp_path, **WHOLE_BLOCKS), quant="nf4")
    assert "nf4 and float32 on cpu" in caplog.text


# QLoRA


@pytest.mark.parametrize("checkpointing", [True, False])
def test_lora_steps_are_those_of_the_dense_model_of_the_same_worth(checkpointing: bool) -> None:
    """With an evaluation in between, and with gradients through every layer."""
    base = nf4_model()
    losses, trained = [], []
    for model in (base, dense_twin(base)):
        torch.manual_seed(3)
        tuned = apply_method(model, Lora(r=4, dropout=0.0, target_modules=TARGETS))
        if checkpointing and model is base:
            tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        steps = [lora_step(tuned)]
        with torch.no_grad():
            tuned.eval()(IDS)
        losses.append([*steps, lora_step(tuned), lora_step(tuned)])
        trained.append({n: p for n, p in tuned.named_parameters() if p.requires_grad})
    assert_close(losses[0], losses[1], share=1e-4)
    assert losses[0][2] < losses[0][0]
    assert len(trained[0]) == 16
    assert_close(list(trained[0].values()), [trained[1][name] for name in trained[0]])


def test_training_changes_the_adapter_alone_and_it_opens_again_the_same(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", **WHOLE_BLOCKS)
    tuned = apply_method(load_model(folder, quant="nf4"), Lora(r=4, dropout=0.0))
    before = copy.deepcopy(tuned.state_dict())
    for _ in range(3):
        lora_step(tuned)
    changed = {name for name, x in tuned.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    card = Card(base=str(folder), template="chatglm3", method={}, quant="nf4")
    save_trained(tuned, tmp_path / "adapter", card)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[1] for name in saved} == {".lora_"}
    opened = load_model(tmp_path / "adapter")
    assert held_quant(opened) == "nf4"
    assert torch.equal(opened(IDS).logits, tuned.eval()(IDS).logits)


@FAMILIES
def test_a_run_on_an_nf4_base_learns_and_answers(family: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,response\n" + "问题,答案。\n" * 12, encoding="utf-8")
    recipe = {
        "model": str(family_folder(tmp_path / "m", family)),
        "quant": "nf4",
        "output": tmp_path / "run",
        "data": {"train": rows},
        "train": {"steps": 6, "batch_size": 4, "lr": 0.01, "eval_every": 2},
        "samples": {"max_new_tokens": 2},
    }
    figures = glmtune.train(recipe).metrics
    assert figures["eval_loss"] < figures["first_eval_loss"]


# What is refused


@pytest.mark.parametrize(("family", "inputs"), [("v3", 96), ("v2", 112), ("v1_late", 160)])
def test_rows_that_are_no_whole_blocks_are_refused_by_name_before_anything_is_read(
    family: str, inputs: int
) -> None:
    told: list[tuple[int, int]] = []
    with pytest.raises(
        ConfigError, match=rf"multiple of 64 .*layers.0.mlp.dense_4h_to_h have {inputs}"
    ) as caught:
        load_base(
            GOLDENS / family / "ckpt", device="cpu", quant="nf4", progress=lambda *now: told.append(now)
        )
    assert caught.value.hint == "quant=int4 or quant=int8"
    assert not told


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path, **WHOLE_BLOCKS)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match="needs bitsandbytes") as caught:
        load_model(folder, quant="nf4")
    assert caught.value.hint == "pip install 'glmtune[bitsandbytes]'"


def test_an_nf4_model_is_not_quantised_again_nor_a_quantised_folder_to_nf4() -> None:
    with pytest.raises(ConfigError, match="this model is nf4 already, not int8"):
        nf4_model().quantize(8)
    with pytest.raises(ConfigError, match="this model is int4 already, not nf4"):
        quantise_to_nf4(tiny_model(**WHOLE_BLOCKS).quantize(4))
    with pytest.raises(ConfigError, match=r"quant: nf4, but .* is int4 already"):
        load_base(GOLDENS / "v3" / "ckpt_int4", device="cpu", quant="nf4")


def test_an_nf4_model_is_not_tuned_whole_nor_saved_whole(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.name: full, but the model is quantised \(nf4\)"):
        apply_method(nf4_model(), Full())
    with pytest.raises(ConfigError, match="save: the model is nf4") as caught:
        nf4_model().save_pretrained(tmp_path / "whole")
    assert "save the adapter" in caught.value.hint
    assert not (tmp_path / "whole").exists()


@pytest.mark.parametrize("safe", [True, False])
def test_an_adapter_is_not_merged_into_codes(safe: bool, tmp_path: Path) -> None:
    tuned = apply_method(nf4_model(), Lora(r=2))
    save_trained(tuned, tmp_path, Card(base="/base", template="chatglm3", method={}))
    for model in (tuned, load_adapter(nf4_model(), tmp_path)):
        with pytest.raises(ConfigError, match="cannot be merged into its codes"):
            model.merge_and_unload(safe_merge=safe)


@pytest.mark.gpu
@FLOATS
def test_codes_and_products_of_a_gpu_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    dense = dense_layer(512, 448, bias=True, dtype=dtype)
    here, there = Nf4Linear(dense), Nf4Linear(copy.deepcopy(dense).cuda())
    assert torch.equal(here.weight, there.weight.cpu())
    assert_close(here.dequantise(), there.dequantise().cpu(), share=1e-3)
    for tokens in (1, 7, 300, 2000):  # one kernel for few, another for many
        x = torch.randn(1, tokens, 448, dtype=dtype, device="cuda", requires_grad=True)
        moved: Tensor = functional.linear(x, there.dequantise(), there.bias)
        assert_close(there(x), moved, share=0.02)
