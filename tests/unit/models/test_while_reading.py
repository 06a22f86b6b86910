"""Models of transformers' classes, quantised while they are read: codes, worth, refusals."""

import copy
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from closeness import assert_close
from glmtune.errors import CheckpointError, ConfigError
from glmtune.load import load_model
from glmtune.methods import apply_method
from glmtune.models import load_in_transformers
from glmtune.models.nf4 import Nf4Linear
from glmtune.models.outline import count_weights
from glmtune.models.quant import QuantizedLinear, held_quant, quantise, quantised_layers
from glmtune.models.reading import Reading
from glmtune.models.while_reading import _FilledLayer
from glmtune.quants import BITS, QUANTS
from glmtune.recipe import Lora
from models import HF_FAMILIES, tiny_hf_folder

WHOLE_BLOCKS = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
EXPERTS = {"moe_intermediate_size": 64}
NUM_LINEARS = {"GLM-4-hf": 12, "GLM-4-0414": 12, "GLM-4.5": 14}
"""Linear layers of two blocks: GLM-4.5's have three in the shared expert, and gate and up are apart."""
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
HALF = torch.bfloat16


def make(folder: Path, family: str, dtype: torch.dtype = HALF, **settings: Any) -> Path:
    experts = EXPERTS if family == "GLM-4.5" else {}
    return tiny_hf_folder(folder, family, dtype=dtype, **WHOLE_BLOCKS, **experts, **settings)


@pytest.fixture(scope="module", params=list(HF_FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hf") / "base", family)


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def dense_twin(folder: Path, layers: dict[str, QuantizedLinear]) -> Any:
    """transformers' own model in fp32, with the weights that quantised layers stand for."""
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, layer in layers.items():
            twin.get_submodule(name).weight.copy_(layer.dequantise())
    return twin


# What is quantised, and to what


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quant", BITS)
def test_codes_and_scales_are_those_of_the_stored_values_in_whatever_type_it_is_opened(
    folder: Path, family: str, quant: str, dtype: str
) -> None:
    layers = quantised_layers(load_in_transformers(folder, dtype=dtype, device="cpu", quant=quant))
    assert len(layers) == NUM_LINEARS[family]
    for name, layer in layers.items():
        codes, scale = quantise(stored(folder)[f"{name}.weight"], BITS[quant])
        assert torch.equal(layer.weight, codes)
        assert torch.equal(layer.weight_scale, scale)


def test_nf4_codes_are_those_of_the_stored_values(folder: Path, family: str) -> None:
    layers = quantised_layers(load_in_transformers(folder, dtype="fp32", device="cpu", quant="nf4"))
    assert len(layers) == NUM_LINEARS[family]
    for name, layer in layers.items():
        weight = stored(folder)[f"{name}.weight"]
        dense = torch.nn.Linear(*reversed(weight.shape), bias=False).to(HALF)
        dense.weight.data = weight
        expected = dict(Nf4Linear(dense).named_parameters())
        assert {n: p.dtype for n, p in layer.named_parameters() if n != "bias"} == {
            n: p.dtype for n, p in expected.items()
        }
        assert all(torch.equal(p, dict(layer.named_parameters())[n]) for n, p in expected.items())


def test_all_else_is_held_as_stored(folder: Path) -> None:
    dense = load_in_transformers(folder, dtype="bf16", device="cpu")
    model = load_in_transformers(folder, dtype="bf16", device="cpu", quant="int4")
    codes = {f"{name}.{part}" for name in quantised_layers(model) for part in ("weight", "weight_scale")}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in codes}
    assert {name for name in kept if "bias" not in name and "norm" not in name} >= {
        "lm_head.weight",
        "model.embed_tokens.weight",
    }
    assert kept.keys() == dense.state_dict().keys() - codes
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in kept.items())
    buffers = dict(dense.named_buffers())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize("quant", QUANTS)
def test_logits_are_those_of_the_dense_model_of_the_same_worth(folder: Path, quant: str) -> None:
    model = load_in_transformers(folder, dtype="fp32", device="cpu", quant=quant)
    with torch.no_grad():
        expected = dense_twin(folder, quantised_layers(model))(IDS).logits
        assert_close(model(IDS).logits, expected)


def test_tensors_are_read_in_the_thread_that_loads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is filled without a lock, and the memory is one layer's, because transformers starts none."""
    threads: list[threading.Thread] = []
    take = _FilledLayer.take

    def watch(layer: _FilledLayer, name: str) -> torch.nn.Parameter:
        threads.append(threading.current_thread())
        return take(layer, name)

    monkeypatch.setattr(_FilledLayer, "take", watch)
    load_in_transformers(folder, device="cpu", quant="int8")
    assert set(threads) == {threading.current_thread()}


def test_it_counts_as_many_weights_as_the_dense_model(folder: Path) -> None:
    dense, model = (load_in_transformers(folder, device="cpu", quant=quant) for quant in (None, "nf4"))
    assert sum(count_weights(model).values()) == sum(count_weights(dense).values())


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    folder = make(tmp_path / "base", "GLM-4-0414", tie_word_embeddings=True)
    model = load_in_transformers(folder, device="cpu", quant="int8")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert held_quant(model) == "int8"


def test_a_copy_is_equal_and_its_own(folder: Path) -> None:
    model = load_in_transformers(folder, dtype="fp32", device="cpu", quant="int8")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(IDS).logits, model(IDS).logits)


def test_opening_says_in_bytes_what_is_not_quantised(
    folder: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model(folder, quant="int8", dtype="fp32", device="cpu")
    line = next(record.getMessage() for record in caplog.records if "not quantised" in record.getMessage())
    codes = sum(part.nbytes for layer in quantised_layers(model).values() for part in layer.held)
    assert f"{codes / 1000:.1f} kB of codes" in line
    head = model.lm_head.weight.nbytes
    assert f"embedding {head / 1000:.1f} kB" in line
    assert f"output layer {head / 1000:.1f} kB" in line
    assert "others " in line
    experts = sum(p.nbytes for name, p in model.named_parameters() if ".experts." in name)
    assert (f"experts {experts / 1000:.1f} kB" in line) == (family == "GLM-4.5")


# What reading checks


def test_the_hash_of_what_was_read_is_that_of_a_dense_load(folder: Path) -> None:
    dense, quantised = Reading(is_hashed=True), Reading(is_hashed=True)
    load_in_transformers(folder, device="cpu", reading=dense)
    load_in_transformers(folder, device="cpu", reading=quantised, quant="int4")
    assert quantised.digest() == dense.digest()


def test_a_quantised_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "base", "GLM-4-hf")
    name, tensors = "model.layers.1.mlp.down_proj.weight", stored(folder)
    tensors[name][3, 5] = float("inf")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"tensor {name} holds 1 numbers that are not finite"):
        load_in_transformers(folder, device="cpu", quant="int8")


# What is refused


@pytest.mark.parametrize(("quant", "problem"), [("int4", "an odd number"), ("nf4", "multiple of 64")])
def test_rows_that_do_not_fit_are_refused_before_anything_is_read(
    tmp_path: Path, quant: str, problem: str
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 33, "head_dim": 16}
    folder = tiny_hf_folder(tmp_path / "base", "GLM-4-0414", **sizes)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_in_transformers(folder, device="cpu", quant=quant)
    assert "int8" in str(caught.value.hint)
    assert held_quant(load_in_transformers(folder, device="cpu", quant="int8")) == "int8"


def test_an_unknown_quantisation_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="quant: unknown 'int2'"):
        load_in_transformers(folder, device="cpu", quant="int2")


@pytest.mark.parametrize("quant", QUANTS)
def test_no_folder_is_written_that_could_not_be_opened_again(
    folder: Path, tmp_path: Path, quant: str
) -> None:
    model = load_in_transformers(folder, device="cpu", quant=quant)
    with pytest.raises(ConfigError, match=f"save: the model is {quant}") as caught:
        model.save_pretrained(tmp_path / "saved")
    assert f"quant={quant}" in str(caught.value.hint)
    assert not (tmp_path / "saved").exists()


def test_an_adapter_cannot_be_merged_into_codes(folder: Path) -> None:
    tuned = apply_method(load_model(folder, quant="int8", dtype="fp32", device="cpu"), Lora(r=2))
    with pytest.raises(ConfigError, match="merge: the base is quantised"):
        tuned.merge_and_unload()


def test_nothing_of_it_stays_in_the_config(folder: Path) -> None:
    dense, model = (load_in_transformers(folder, device="cpu", quant=quant) for quant in (None, "int8"))
    assert model.config.to_dict() == dense.config.to_dict()
