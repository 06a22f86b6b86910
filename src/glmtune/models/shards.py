"""Read a checkpoint's files: the tensors in each, from headers alone, and their values, memory-mapped.

Pickles are read for tensors only (`pickles`). Any fault of a file becomes a CheckpointError that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from glmtune.errors import CheckpointError
from glmtune.files import COPY_AGAIN, read_json
from glmtune.folder import LAYOUTS, ModelFolder
from glmtune.models.pickles import read_tensors
from glmtune.tensor_file import explain_damage, open_safetensors
from glmtune.values import shown

_LONGEST_NAME = 255  # bytes, of Linux, Windows and macOS alike
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
}


_TRAINED_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8)
"""Dtypes in the files of adapters and training states."""


@dataclass(frozen=True)
class Stored:
    """The location, shape and dtype of a tensor in a checkpoint, from its file's header."""

    file: Path
    name: str
    """The tensor's name in the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype


class Shard(Protocol):
    """An open file of tensors."""

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shape and dtype of every tensor, without reading any."""

    def read(self, name: str) -> Tensor:
        """Return a tensor, mapped from the file."""


def scan_tensors(folder: Path | ModelFolder) -> Mapping[str, Stored]:
    """List every tensor of a folder's checkpoint by name, from headers alone. Raises CheckpointError."""
    return ModelFolder.of(folder).once(_scan_tensors)


def suppose_tensors(folder: ModelFolder, tensors: Mapping[str, Tensor]) -> None:
    """Have `scan_tensors` list these tensors, for a folder without weights."""
    file = folder.path / "config.json"
    listed = {name: Stored(file, name, tuple(each.shape), each.dtype) for name, each in tensors.items()}
    folder.suppose(_scan_tensors, listed)


def _scan_tensors(folder: ModelFolder) -> dict[str, Stored]:
    for single, index in LAYOUTS:  # in the order that transformers prefers them
        if (folder.path / single).exists():
            listed = {"": folder.path / single}
            break
        if (folder.path / index).exists():
            listed = _read_index(folder.path / index)
            break
    else:
        names = ", ".join(name for layout in LAYOUTS for name in layout)
        raise CheckpointError(f"{folder}: no weights; looked for {names}", hint="download the weights too")
    tensors: dict[str, Stored] = {}
    for file in sorted(set(listed.values())):
        for name, (shape, dtype) in open_shard(file).headers().items():
            if name in tensors:
                raise CheckpointError(f"{file}: {name} is also in {tensors[name].file.name}", hint=COPY_AGAIN)
            tensors[name] = Stored(file, name, shape, dtype)
    for name, file in listed.items():
        if name and name not in tensors:
            raise CheckpointError(
                f"{file}: tensor {name} is missing, though the index lists it", hint=COPY_AGAIN
            )
    return tensors


def _read_index(file: Path) -> dict[str, Path]:
    """Read the file of each tensor from an index."""
    # shard names come from outside: a path in one could point anywhere on the disk
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file}: no weight_map, an object of tensor name to file", hint=COPY_AGAIN)
    for name, shard in weight_map.items():
        if not is_file_name(shard):
            raise CheckpointError(
                f"{file}: {name} lies in {shown(shard)}, which is not the name of a file beside it",
                hint=COPY_AGAIN,
            )
    for shard in sorted(set(weight_map.values())):
        if not (file.parent / shard).exists():
            raise CheckpointError(
                f"{file.parent / shard}: missing, but listed in {file.name}", hint="download this shard"
            )
    return {name: file.parent / shard for name, shard in weight_map.items()}


def is_file_name(value: object) -> bool:
    """Return True if the value can be the name of a file in the same folder, on any system."""
    if not isinstance(value, str) or value in ("", ".", "..") or any(c in value for c in "/\\\0"):
        return False
    return len(value.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME and value.isprintable()


def open_shard(file: Path) -> Shard:
    """Map a file of weights into memory. Raises CheckpointError for a damaged or unsafe file."""
    return _SafetensorsShard(file) if file.suffix == ".safetensors" else _PickleShard(file)


def read_stored(at: Stored) -> Tensor:
    """Return a tensor of a checkpoint, mapped from its file."""
    return open_shard(at.file).read(at.name)


def read_shard(file: Path) -> dict[str, Tensor]:
    """Return every tensor of a file of trained weights, mapped. Raises CheckpointError, as `open_shard`.

    A pickle's checksums are compared too, unlike in `open_shard`: files of trained weights are small.
    """
    if file.suffix != ".safetensors":
        tensors = read_tensors(file)
    else:
        shard = _SafetensorsShard(file)
        tensors = {name: shard.read(name) for name in shard.headers()}
    for name, tensor in tensors.items():
        if tensor.dtype not in _TRAINED_TYPES:
            raise CheckpointError(
                f"{file}: {name} is stored in {str(tensor.dtype).removeprefix('torch.')}", hint=COPY_AGAIN
            )
    return tensors


class _SafetensorsShard:
    """A mapped safetensors file."""

    def __init__(self, file: Path) -> None:
        self._path, self._file = file, open_safetensors(file, "pt")

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 it is no dict
        return {
            name: (tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8))
            for name, part in slices.items()
        }

    def read(self, name: str) -> Tensor:
        with explain_damage(self._path):
            tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _PickleShard:
    """A mapped `torch.save` file."""

    def __init__(self, file: Path) -> None:
        self._tensors = read_tensors(file, check_crc=False)  # checksums would read all of its 10 GB

    def headers(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._tensors[name]
        return tensor
