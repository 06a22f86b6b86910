import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.exports.folder import require_space
from glmtune.exports.tensors import Group, Merged, parse_size, write_shards
from glmtune.models.shards import scan_tensors


def groups(sizes: list[int], asked: list[str]) -> list[Group]:
    """Tensors of so many fp32 numbers; `asked` collects which were made."""

    def make(name: str, size: int) -> Group:
        def read() -> dict[str, Tensor]:
            asked.append(name)
            return {name: torch.full((size,), float(size))}

        return Group({name: ((size,), torch.float32)}, read)

    return [make(f"w{i}", size) for i, size in enumerate(sizes)]


def test_shards_are_as_full_as_they_may_be_and_the_index_says_where_each_tensor_lies(tmp_path: Path) -> None:
    asked: list[str] = []
    write_shards(groups([10, 10, 10, 30, 5], asked), tmp_path, 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = [f"model-0000{i}-of-00004.safetensors" for i in (1, 1, 2, 3, 4)]
    assert index == {"metadata": {"total_size": 260}, "weight_map": dict(zip(asked, files, strict=True))}
    assert asked == ["w0", "w1", "w2", "w3", "w4"]  # each is made once
    assert {name: held.shape for name, held in scan_tensors(tmp_path).items()}["w3"] == (30,)


def test_what_fits_into_one_file_has_no_index(tmp_path: Path) -> None:
    write_shards(groups([4], []), tmp_path, 80)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_slice_of_a_larger_tensor_is_written_alone(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    write_shards([Group({"a": ((2, 3), torch.float32)}, lambda: {"a": whole[1:3]})], tmp_path, 10**6)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], whole[1:3])


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("10 kb", 10**4)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "GB", "-1GB", "0GB", "2TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        parse_size(text)


def test_a_weight_too_large_for_its_type_is_named(tmp_path: Path) -> None:
    save_file(
        {"w": torch.tensor([1e6]), "rotary.inv_freq": torch.tensor([1e6])}, tmp_path / "model.safetensors"
    )
    merged = Merged(scan_tensors(tmp_path), {}, torch.float16)
    with pytest.raises(CheckpointError, match="w: not finite, or too large for float16"):
        merged.read("w")
    assert merged.read("rotary.inv_freq").dtype == torch.float32  # a buffer stays as it is


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"needs 1000000000\.0 GB, but .* are free"):
        require_space(tmp_path / "new" / "folder", 10**18)
    require_space(tmp_path / "new" / "folder", 1)


def test_a_file_that_gives_other_bytes_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, Tensor], path: Path, **settings: Any) -> None:
        first = next(iter(tensors))
        save_file(tensors | {first: -tensors[first]}, path, **settings)

    monkeypatch.setattr("glmtune.exports.tensors.save_file", spoil)
    group = Group({"w": ((3,), torch.float32)}, lambda: {"w": torch.zeros(3)})  # 0 and -0 are other bytes
    with pytest.raises(OutputError, match=r"model\.safetensors: w reads back other than it was written"):
        write_shards([group], tmp_path, 10**6)
    assert load_file(tmp_path / "model.safetensors")
