"""What is seen of a checkpoint's tensors while they are read: NaN, infinity, types no model is held in."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune import load_model
from glmtune.errors import CheckpointError
from glmtune.info import inspect
from glmtune.models.reading import Reading, hash_whole, require_finite
from glmtune.models.shards import read_shard, scan_tensors
from models import tiny_folder, tiny_hf_folder, tiny_v1_folder

HALVES = (torch.float32, torch.bfloat16, torch.float16)
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "ChatGLM-6B": tiny_v1_folder,
    "ChatGLM3": tiny_folder,
    "GLM-4-0414": lambda folder: tiny_hf_folder(folder, "GLM-4-0414"),
    "GLM-4.5": lambda folder: tiny_hf_folder(folder, "GLM-4.5"),
}


def change(folder: Path, make: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    save_file({name: make(name, tensor) for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 70_001])
def test_one_number_that_is_not_finite_is_seen_wherever_it_lies(size: int, dtype: torch.dtype) -> None:
    largest = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    require_finite(Path("x"), "w", largest)
    for at in {0, size // 3, size // 2, size - 1}:
        for bad in (float("nan"), float("inf"), float("-inf")):
            numbers = torch.randn(size).to(dtype)
            numbers[at] = bad
            with pytest.raises(CheckpointError, match=rf"1 numbers .* the first is {bad} at \[{at}\]"):
                require_finite(Path("x"), "w", numbers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_base_whose_weights_are_not_finite_is_refused_by_the_tensor(
    family: str, bad: float, form: str, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path / "base")
    last = sorted(load_file(folder / "model.safetensors"))[-1]

    def spoil(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_fill(0, torch.tensor([1]), bad) if name == last else tensor

    change(folder, spoil)
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"tensor {last} holds .* not finite, the first is {bad}"):
        load_model(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_that_the_type_asked_for_cannot_hold_is_refused_by_the_tensor(
    family: str, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path / "base")
    last = sorted(load_file(folder / "model.safetensors"))[-1]
    one = torch.tensor([1])
    change(folder, lambda name, t: t.float().index_fill(0, one, 1e5) if name == last else t.float())
    with pytest.raises(CheckpointError, match=f"tensor {last} holds 1e.05, too large for float16") as caught:
        load_model(folder, dtype="fp16")
    for dtype in re.findall(r"dtype=(\w+)", caught.value.hint):
        load_model(folder, dtype=dtype)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_scale_that_is_not_finite_is_refused(quant: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base")
    load_model(folder, quant=quant).save_pretrained(tmp_path / "codes")
    change(tmp_path / "codes", lambda name, t: t.fill_(float("nan")) if name.endswith("_scale") else t)
    with pytest.raises(CheckpointError, match=r"weight_scale holds .* not finite"):
        load_model(tmp_path / "codes", template="chatglm3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64], ids=str)
def test_one_tensor_of_another_type_is_refused_by_its_name(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path / "base")
    last = sorted(load_file(folder / "model.safetensors"))[-1]
    change(folder, lambda name, tensor: tensor.to(dtype) if name == last else tensor)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"tensor {last} is stored in {kind}"):
        load_model(folder)
    assert any(f"tensor {last} is stored in {kind}" in warning for warning in inspect(folder).warnings)


def test_a_trained_tensor_of_a_type_that_nothing_is_trained_in_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.zeros(2, dtype=torch.bool)}, tmp_path / "trained.safetensors")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors: a\.lora_A\.weight is stored in bool"):
        read_shard(tmp_path / "trained.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hash_of_what_is_read_is_that_of_the_model_that_was_saved(family: str, tmp_path: Path) -> None:
    folder = FAMILIES[family](tmp_path / "base")
    seen = Reading(is_hashed=True)
    model = open_with(folder, family, seen)
    assert seen.digest() == hash_whole(model)
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert len({held.file for held in scan_tensors(tmp_path / "again").values()}) > 1
    again = Reading(is_hashed=True)
    for path in folder.iterdir():
        if path.suffix in (".json", ".model", ".jinja") and not (tmp_path / "again" / path.name).exists():
            (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
    open_with(tmp_path / "again", family, again)
    assert again.digest() == seen.digest()


def open_with(folder: Path, family: str, reading: Reading) -> Any:
    from glmtune.models import load_base, load_in_transformers

    load = load_base if family.startswith("Chat") else load_in_transformers
    return load(folder, dtype="fp32", device="cpu", template=None, reading=reading)
