"""Which base is this: the same for each way of storing the same weights, another for other weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune import load_model
from glmtune.methods import apply_method
from glmtune.models.fingerprint import fingerprint
from glmtune.recipe import Lora
from golden import GOLDENS
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder


def copy_without_weights(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return to


def as_bin(folder: Path, to: Path) -> Path:
    torch.save(
        load_file(folder / "model.safetensors"), copy_without_weights(folder, to) / "pytorch_model.bin"
    )
    return to


def as_shards(folder: Path, to: Path) -> Path:
    copy_without_weights(folder, to)
    tensors = load_file(folder / "model.safetensors")
    where = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        part = {name: tensor for name, tensor in tensors.items() if where[name] == file}
        save_file(part, to / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (to / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return to


def as_fp32(folder: Path, to: Path) -> Path:
    copy_without_weights(folder, to)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("stored", [as_bin, as_shards, as_fp32])
@pytest.mark.parametrize("family", ["ChatGLM-6B", "ChatGLM3", "GLM-4-hf"])
def test_the_layout_does_not_matter(family: str, stored: object, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    if family == "ChatGLM-6B":
        tiny_v1_folder(folder)
    elif family == "ChatGLM3":
        tiny_folder(folder, dtype=torch.float16)
    else:
        tiny_hf_folder(folder, family, dtype=torch.bfloat16)
    assert callable(stored)
    assert fingerprint(stored(folder, tmp_path / "other")) == fingerprint(folder)


def test_a_copy_of_tied_weights_does_not_matter(tmp_path: Path) -> None:
    """ChatGLM-6B's files have the output layer's copy or not."""
    folder = tiny_v1_folder(tmp_path / "base")
    other = copy_without_weights(folder, tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    copied = tensors["transformer.word_embeddings.weight"].clone()
    save_file({**tensors, "lm_head.weight": copied}, other / "model.safetensors", {"format": "pt"})
    assert fingerprint(other) == fingerprint(folder)


def test_other_weights_have_another(tmp_path: Path) -> None:
    kinds = {
        "seed": tiny_folder(tmp_path / "seed", seed=3),
        "layers": tiny_folder(tmp_path / "layers", num_layers=3),
        "rounded": tiny_folder(tmp_path / "rounded", dtype=torch.bfloat16),
        "base": tiny_folder(tmp_path / "base"),
    }
    merged = apply_method(load_model(kinds["base"], dtype="fp32"), Lora(target_modules=("dense",)))
    for name, parameter in merged.named_parameters():
        if "lora_B" in name:
            parameter.data += 1e-3
    kinds["merged"] = copy_without_weights(kinds["base"], tmp_path / "merged")
    merged.merge_and_unload().save_pretrained(kinds["merged"])
    found = {name: fingerprint(folder) for name, folder in kinds.items()}
    assert len({one.weights for one in found.values()}) == len(kinds)
    assert found["merged"].config == found["base"].config


def test_a_folder_that_is_quantised_officially_has_its_own() -> None:
    found = {name: fingerprint(GOLDENS / "v3" / name) for name in ("ckpt", "ckpt_int8", "ckpt_int4")}
    assert len({one.weights for one in found.values()}) == 3
    assert [one.config["quantization_bit"] for one in found.values()] == [0, 8, 4]


def test_it_names_family_and_revision() -> None:
    kinds = {"v1_early": "ChatGLM-6B early", "v1_mid": "ChatGLM-6B mid", "glm4": "GLM-4"}
    assert {name: fingerprint(GOLDENS / name / "ckpt").kind for name in kinds} == kinds
