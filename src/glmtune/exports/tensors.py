"""The tensors of an export, made one after the other, and written in shards: one shard is held at a time."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from glmtune.adapters.merge import Changed, giving, merged_weights
from glmtune.adapters.store import stored_tensors
from glmtune.errors import CheckpointError, ConfigError
from glmtune.exports.refusal import refused
from glmtune.exports.source import ExportSource
from glmtune.models.loaders import FAMILY_LOADERS
from glmtune.models.own import build_outline
from glmtune.models.quant import dequantise, name_linears, quantise
from glmtune.models.shards import Stored, open_shard, read_stored, scan_tensors
from glmtune.recipe import TrainedPart

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_BUFFER = "inv_freq"  # computed by every model itself; kept only because the base's files have it


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are made, and lie, together."""

    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[], dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        """Their size in the file."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.shapes.values())


@dataclass(frozen=True, slots=True)
class Merged:
    """A base's tensors under its own names, with those that were trained in place of its own."""

    stored: Mapping[str, Stored]
    changed: Changed
    dtype: torch.dtype | None = None
    """Of every floating tensor; None: each as the base has it."""
    num_defined: int = 0
    """So many of those that are changed are made by the definition of base + adapter."""

    def dtype_of(self, name: str) -> torch.dtype:
        """The type that a tensor is written in."""
        own = self.stored[name].dtype
        is_cast = self.dtype is not None and own.is_floating_point and not name.endswith(_BUFFER)
        return self.dtype if is_cast and self.dtype else own

    @property
    def roughest(self) -> torch.dtype:
        """Of the types that floating tensors are written in, the one that rounds most."""
        kinds = {self.dtype_of(name) for name in self.stored if not name.endswith(_BUFFER)}
        floating = (kind for kind in kinds if kind.is_floating_point)
        return max(floating, key=lambda kind: torch.finfo(kind).eps)

    def read(self, name: str) -> Tensor:
        """A tensor as it is written. Raises `CheckpointError` for one that is not finite then."""
        tensor = self.changed.get(name, read_stored)(self.stored[name])
        written = tensor.to("cpu", self.dtype_of(name))
        if written.is_floating_point() and not bool(written.isfinite().all()):
            kind = str(written.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name}: not finite, or too large for {kind}", hint="dtype=bf16 or dtype=fp32"
            )
        return written

    def group(self, name: str) -> Group:
        """The tensor alone."""
        shapes = {name: (self.stored[name].shape, self.dtype_of(name))}
        return Group(shapes, lambda: {name: self.read(name)})

    def groups(self) -> list[Group]:
        """All of them, in the base's order."""
        return [self.group(name) for name in self.stored]


def merge(source: ExportSource, dtype: torch.dtype | None) -> Merged:
    """The merged weights of a source.

    Raises `ConfigError` for a prefix, `CheckpointError` for weights that the base's files have no place for.
    """
    stored = scan_tensors(source.folder)
    changed = _changed(source)
    origins = _origins(source, set(changed), set(stored))
    odd = sorted(origins.keys() - stored.keys())
    if odd:
        raise CheckpointError(
            f"{source.base}: it has no tensor {odd[0]}, which was trained, so there is no place for it",
            hint="GLM-4.5's experts lie one by one in its files; train them in full, or with LoRA elsewhere",
        )
    merged = {name: changed[origin] for name, origin in origins.items()}
    return Merged(stored, merged, dtype, num_defined=len(merged) if source.has_factors else 0)


def _origins(source: ExportSource, changed: set[str], stored: set[str]) -> dict[str, str]:
    """By their names in the base's files, under which name the weights that are changed were trained."""
    origins = {name: name for name in changed}
    for copy, kept in _tied(source).items():  # whichever copies the base has
        for one, other in ((copy, kept), (kept, copy)):
            if one in origins and other in stored and other not in origins:
                origins[other] = origins[one]
        origins = {name: of for name, of in origins.items() if name in stored or name not in (copy, kept)}
    return origins


def _changed(source: ExportSource) -> Changed:
    location = source.location
    if source.kept is TrainedPart.PREFIX:
        raise ConfigError(
            f"{source.name}: P-Tuning's prefix is no part of any weight and cannot be merged",
            hint="to=official-ptuning writes it as the official code reads it",
        )
    if source.is_whole:
        held = scan_tensors(location.folder)
        return {name: _reading(at) for name, at in held.items() if not name.endswith(_BUFFER)}
    if location.adapter is None:
        return {}
    if source.has_factors:
        return merged_weights(location.adapter)
    return {name: giving(value) for name, value in stored_tensors(location.adapter).items()}


def _reading(at: Stored) -> Callable[[Stored], Tensor]:
    return lambda _: read_stored(at)


def _tied(source: ExportSource) -> dict[str, str]:
    """Names that stand for one weight in the model: each copy's, and that of the parameter itself."""
    identity = source.identity
    return dict(FAMILY_LOADERS[identity.family].tied(source.folder, identity.template))


@dataclass(frozen=True, slots=True)
class Quantised:
    """Merged weights, the blocks' linear layers in the official packing."""

    merged: Merged
    linears: frozenset[str]
    """Names of the weights that are quantised."""
    bits: int
    scale_dtype: torch.dtype | None
    """Of the scales, where the family has one of its own."""

    def group(self, name: str) -> Group:
        """A tensor, or the codes and scales in its place."""
        if name not in self.linears:
            return self.merged.group(name)
        outputs, inputs = self.merged.stored[name].shape
        shapes = {
            name: ((outputs, inputs * self.bits // 8), torch.int8),
            f"{name}_scale": ((outputs,), self.scale_dtype or self.merged.dtype_of(name)),
        }
        return Group(shapes, lambda: dict(zip(shapes, self._quantise(name), strict=True)))

    def groups(self) -> list[Group]:
        """All of them, in the base's order."""
        return [self.group(name) for name in self.merged.stored]

    def read(self, name: str) -> Tensor:
        """What a weight is worth once it is quantised."""
        if name not in self.linears:
            return self.merged.read(name)
        return dequantise(*self._quantise(name), self.bits)

    def _quantise(self, name: str) -> tuple[Tensor, Tensor]:
        return quantise(self.merged.read(name), self.bits, scale_dtype=self.scale_dtype)


def quantise_merged(source: ExportSource, merged: Merged, bits: int) -> Quantised:
    """The merged weights, to be quantised."""
    outline = build_outline(source.folder, template=source.identity.template)
    linears = frozenset(f"{name}.weight" for name in name_linears(outline))
    return Quantised(merged, linears, bits, outline.scale_dtype)


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `500MB`, `1GiB`. Raises `ConfigError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f"max_shard_size: {text!r} is no size", hint="such as 2GB, 500MB or 1GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def write_shards(groups: Sequence[Group], folder: Path, largest: int) -> None:
    """Write safetensors files of at most `largest` bytes each, and their index if there are several.

    Raises OSError if the disk does not take them.
    """
    shards = list(_divide(groups, largest))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = several if len(shards) > 1 else "model.safetensors"
        tensors: dict[str, Tensor] = {}
        for group in shard:
            tensors |= {name: _alone(value) for name, value in group.read().items()}
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as err:  # what its writer makes of a failing disk
            raise OSError(str(err)) from err
        _require_written(folder / file, tensors)
        places |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(group.num_bytes for group in groups)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _require_written(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `OutputError` unless a file gives back what was written, byte by byte."""
    shard = open_shard(file)
    for name, value in tensors.items():
        back = shard.read(name)
        if back.dtype != value.dtype or not torch.equal(_bytes(back), _bytes(value)):
            raise refused(f"{file.name}: {name} reads back other than it was written")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _alone(tensor: Tensor) -> Tensor:
    """With memory of its own: a slice or a tied copy shares another's, which safetensors refuses."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _divide(groups: Iterable[Group], largest: int) -> Iterator[list[Group]]:
    shard: list[Group] = []
    size = 0
    for group in groups:
        if shard and size + group.num_bytes > largest:
            yield shard
            shard, size = [], 0
        shard.append(group)
        size += group.num_bytes
    yield shard
