"""INT8 and INT4 against what the official quantisation made of the tiny checkpoints."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from closeness import assert_close
from glmtune.models import load_base
from glmtune.models.quant import dequantise, quantise, quantised_layers

GOLDENS = Path(__file__).parents[1] / "goldens"
COMMITTED = ("v3",)
FAMILIES = ("v1_late", "v2", "v3", "glm4")
CASES = [
    pytest.param((family, bits), marks=() if family in COMMITTED else pytest.mark.shared)
    for family in FAMILIES
    for bits in (8, 4)
]


@dataclass
class Golden:
    bits: int
    dense: Path
    folder: Path
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"int{self.bits}.{name}"]

    @property
    def official(self) -> dict[str, Tensor]:
        """The official quantised checkpoint."""
        stored: dict[str, Tensor] = torch.load(self.folder / "pytorch_model.bin", weights_only=True)
        return stored


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> Golden:
    family, bits = request.param
    root = (GOLDENS if family in COMMITTED else shared / "goldens") / family
    oracle = root / ("quant.safetensors" if family in COMMITTED else "oracle.safetensors")
    folder = tmp_path / f"ckpt_int{bits}"
    folder.mkdir()
    shutil.copyfile(root / f"ckpt_int{bits}" / "pytorch_model.bin", folder / "pytorch_model.bin")
    config = json.loads((root / "ckpt" / "config.json").read_text()) | {"quantization_bit": bits}
    (folder / "config.json").write_text(json.dumps(config))  # glm4's folders have none of their own
    tensors = load_file(oracle)
    if family in COMMITTED:
        tensors["full.input_ids"] = load_file(root / "oracle.safetensors")["full.input_ids"]
    return Golden(bits, root / "ckpt", folder, tensors)


def assert_same_codes(ours: Tensor, official: Tensor, bits: int) -> None:
    """Bit for bit, but where the official int8 code has wrapped: -128 for the largest weight of a row."""
    wrapped = official == -128 if bits == 8 else torch.zeros_like(official).bool()
    assert torch.equal(ours[~wrapped], official[~wrapped])
    assert (ours[wrapped].abs() == 127).all()


def test_our_codes_and_scales_of_the_dense_weights_are_the_official_ones(golden: Golden) -> None:
    official, dense = golden.official, load_file(golden.dense / "model.safetensors")
    names = [name.removesuffix("_scale") for name in official if name.endswith(".weight_scale")]
    assert len(names) == 4 * json.loads((golden.folder / "config.json").read_text())["num_layers"]
    for name in names:
        codes, scale = quantise(dense[name], golden.bits)
        assert torch.equal(scale, official[f"{name}_scale"]), name
        assert_same_codes(codes, official[name], golden.bits)
        if dense[name].dtype == torch.float16:
            assert torch.equal(codes, official[name]), name


def test_the_weights_are_worth_what_they_officially_are(golden: Golden) -> None:
    layers = [
        name.split(".", 1)[1].removesuffix(".dequant")
        for name in golden.tensors
        if name.startswith(f"int{golden.bits}.") and name.endswith(".dequant")
    ]
    assert len(layers) == 4
    for name in layers:
        codes, scale = golden[f"{name}.weight"], golden[f"{name}.weight_scale"]
        assert torch.equal(dequantise(codes, scale, golden.bits), golden[f"{name}.dequant"])


@torch.no_grad()
def test_an_official_quantised_folder_gives_the_official_logits(golden: Golden) -> None:
    model = load_base(golden.folder, dtype="fp32", device="cpu")
    assert_close(model(golden.tensors["full.input_ids"]).logits, golden["full.logits_fp32_of_dequant"])


def test_an_official_quantised_folder_gives_the_official_greedy_ids(golden: Golden) -> None:
    model = load_base(golden.folder, dtype="fp32", device="cpu")
    ids, official = golden["greedy_single.input_ids"], golden["greedy_single.sequences"]
    new = official.shape[1] - ids.shape[1]
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "eos_token_id": -1}
    pad = model.config.pad_token_id
    ours = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=pad, **settings)
    assert torch.equal(ours, official)


def test_a_saved_model_has_the_official_names_types_and_values(golden: Golden, tmp_path: Path) -> None:
    load_base(golden.folder, dtype="auto", device="cpu").half().save_pretrained(tmp_path / "saved")
    saved, official = load_file(tmp_path / "saved" / "model.safetensors"), golden.official
    copies = ("inv_freq", "lm_head.weight")  # computed, and tied to the embeddings
    assert saved.keys() == {name for name in official if not name.endswith(copies)}
    for name, tensor in saved.items():
        assert tensor.dtype == (torch.int8 if official[name].dtype == torch.int8 else torch.float16)
        if tensor.dtype == torch.int8:
            assert torch.equal(tensor, official[name])
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["quantization_bit"] == golden.bits


@torch.no_grad()
def test_quantising_while_loading_gives_the_official_model(golden: Golden) -> None:
    """And so does `quantize` on the loaded dense model, and transformers' Auto class."""
    stored = next(iter(load_file(golden.dense / "model.safetensors").values())).dtype
    streamed = load_base(golden.dense, dtype=stored, device="cpu", quant=f"int{golden.bits}")
    made = load_base(golden.dense, dtype=stored, device="cpu")
    assert made.quantize(golden.bits) is made
    assert made.config.quantization_bit == streamed.config.quantization_bit == golden.bits
    opened = AutoModelForCausalLM.from_pretrained(golden.folder, trust_remote_code=False)
    assert len(quantised_layers(opened)) == 4 * opened.config.num_layers
    official = opened.state_dict()
    ours = load_base(golden.folder, dtype=stored, device="cpu").state_dict()
    assert all(torch.equal(tensor, official[name]) for name, tensor in ours.items())
    for model in (streamed, made):
        ours = model.state_dict()
        assert ours.keys() == official.keys()
        for name, tensor in ours.items():
            if tensor.dtype == torch.int8:
                assert_same_codes(tensor, official[name], golden.bits)
            else:
                assert torch.equal(tensor, official[name]), name


@pytest.mark.shared
@pytest.mark.parametrize("family", COMMITTED)
def test_the_committed_quantised_goldens_are_the_reference_ones(family: str, shared: Path) -> None:
    whole = load_file(shared / "goldens" / family / "oracle.safetensors")
    for name, tensor in load_file(GOLDENS / family / "quant.safetensors").items():
        assert torch.equal(tensor, whole[name]), name
    for bits in (8, 4):
        file = Path(family) / f"ckpt_int{bits}" / "pytorch_model.bin"
        assert (GOLDENS / file).read_bytes() == (shared / "goldens" / file).read_bytes()
