"""The tensors of an export, computed and written shard by shard, with one shard in memory at a time."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
# rotary frequencies, which models compute themselves; written as the base's files have them
_BUFFER = "inv_freq"
_CHECKED_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that are computed together and written to the same shard."""

    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    read: Callable[[], dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in the file."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.shapes.values())


@dataclass(frozen=True, slots=True)
class Merged:
    """A base's tensors by its own names, with trained weights in place of the base's."""

    stored: Mapping[str, Stored]
    changed: Changed
    dtype: torch.dtype | None = None
    """Type of every floating tensor; None: each as in the base."""
    num_defined: int = 0
    """Number of changed weights that are computed by the definition of base + adapter."""

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the type that a tensor is written in."""
        stored = self.stored[name].dtype
        is_cast = self.dtype is not None and stored.is_floating_point and not name.endswith(_BUFFER)
        return self.dtype if is_cast and self.dtype else stored

    @property
    def roughest(self) -> torch.dtype:
        """The written floating type with the coarsest rounding."""
        # eps is the relative rounding error: bf16's is larger than fp16's
        kinds = {self.dtype_of(name) for name in self.stored if not name.endswith(_BUFFER)}
        floating = (kind for kind in kinds if kind.is_floating_point)
        return max(floating, key=lambda kind: torch.finfo(kind).eps)

    def read(self, name: str) -> Tensor:
        """Compute a tensor as it is written. Raises `CheckpointError` if a written number is not finite."""
        # only now is anything read or merged, so that one shard at a time is in memory
        tensor = self.changed.get(name, read_stored)(self.stored[name])
        written = tensor.to("cpu", self.dtype_of(name))
        # in pieces, for `isfinite` makes tensors of twice the size
        parts = torch.split(written.flatten(), _CHECKED_AT_ONCE) if written.is_floating_point() else ()
        if not all(bool(part.isfinite().all()) for part in parts):
            kind = str(written.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{name}: not finite, or too large for {kind}", hint="dtype=bf16 or dtype=fp32"
            )
        return written

    def group(self, name: str) -> Group:
        """Return a tensor as a group of its own."""
        shapes = {name: (self.stored[name].shape, self.dtype_of(name))}
        return Group(shapes, lambda: {name: self.read(name)})

    def groups(self) -> list[Group]:
        """Return all tensors as groups, in the base's order."""
        return [self.group(name) for name in self.stored]


def merge(source: ExportSource, dtype: torch.dtype | None) -> Merged:
    """Merge the weights of a source.

    Raises `ConfigError` for a prefix, and `CheckpointError` for weights that the base's files have no tensor
    for.
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
    """Map the names of changed weights in the base's files to the names they were trained under.

    The two differ only for tied weights, of which the base may store either name or both.
    """
    origins = {name: name for name in changed}
    identity = source.identity
    tied = FAMILY_LOADERS[identity.family].tied(source.folder, identity.template)
    for copy, parameter in tied.items():
        for one, other in ((copy, parameter), (parameter, copy)):
            if one in origins and other in stored and other not in origins:
                origins[other] = origins[one]
        # drop the names of the pair that the base does not store
        origins = {
            name: origin
            for name, origin in origins.items()
            if name in stored or name not in (copy, parameter)
        }
    return origins


def _changed(source: ExportSource) -> Changed:
    """Return functions that give the trained weights, by their names in the model."""
    location = source.location
    if source.kept is TrainedPart.PREFIX:
        raise ConfigError(
            f"{source.name}: P-Tuning's prefix is no part of any weight and cannot be merged",
            hint="to=official-ptuning writes it as the official code reads it",
        )
    if source.is_whole:
        stored = scan_tensors(location.folder)
        mix = partial(_read_own, strength=source.strength)
        return {name: partial(mix, own) for name, own in stored.items() if not name.endswith(_BUFFER)}
    if location.adapter is None:
        return {}
    if source.has_factors:
        return merged_weights(location.adapter, source.strength)
    trained = stored_tensors(location.adapter)
    return {name: giving(value, source.strength) for name, value in trained.items()}


def _read_own(own: Stored, base: Stored, *, strength: float) -> Tensor:
    return giving(read_stored(own), strength)(base)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Merged weights with the layers' linear weights in the official packing."""

    merged: Merged
    linears: frozenset[str]
    """Names of the weights that are quantised."""
    bits: int
    scale_dtype: torch.dtype | None
    """Type of the scales; None: as the weights."""

    def group(self, name: str) -> Group:
        """Return a tensor, or the codes and scales that replace it, as a group."""
        if name not in self.linears:
            return self.merged.group(name)
        outputs, inputs = self.merged.stored[name].shape
        shapes = {
            name: ((outputs, inputs * self.bits // 8), torch.int8),  # int4: two codes in a byte
            f"{name}_scale": ((outputs,), self.scale_dtype or self.merged.dtype_of(name)),
        }
        return Group(shapes, lambda: dict(zip(shapes, self._quantise(name), strict=True)))

    def groups(self) -> list[Group]:
        """Return all groups, in the base's order."""
        return [self.group(name) for name in self.merged.stored]

    def read(self, name: str) -> Tensor:
        """Return the values that a weight has after quantisation."""
        if name not in self.linears:
            return self.merged.read(name)
        return dequantise(*self._quantise(name), self.bits)

    def _quantise(self, name: str) -> tuple[Tensor, Tensor]:
        return quantise(self.merged.read(name), self.bits, scale_dtype=self.scale_dtype)


def quantise_merged(source: ExportSource, merged: Merged, bits: int) -> Quantised:
    """Prepare merged weights for quantisation to `bits`."""
    outline = build_outline(source.folder, template=source.identity.template)
    linears = frozenset(f"{name}.weight" for name in name_linears(outline))
    return Quantised(merged, linears, bits, outline.scale_dtype)


def parse_size(text: str) -> int:
    """Return the number of bytes in a text such as `2GB`, `500MB` or `1GiB`. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?B)", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ConfigError(f"max_shard_size: {text!r} is no size", hint="such as 2GB, 500MB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def write_shards(groups: Sequence[Group], folder: Path, largest: int) -> None:
    """Write safetensors files of at most `largest` bytes each, and their index if there are several.

    Each file is read again and compared byte by byte. Raises OSError if the disk does not take it, and
    `OutputError` if it gives other numbers back.
    """
    shards = list(_divide(groups, largest))
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        numbered = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = numbered if len(shards) > 1 else "model.safetensors"
        tensors: dict[str, Tensor] = {}
        for group in shard:
            # cloned: a slice or a tied copy shares its memory with another tensor, which safetensors refuses
            tensors |= {
                name: value.clone(memory_format=torch.contiguous_format)
                for name, value in group.read().items()
            }
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as err:  # its writer's error for a failing disk
            raise OSError(str(err)) from err
        written = open_shard(folder / file)
        for name, value in tensors.items():
            back = written.read(name)
            if back.dtype != value.dtype or not torch.equal(_bytes(back), _bytes(value)):
                raise refused(f"{file}: {name} reads back other than it was written")
        files |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(group.num_bytes for group in groups)
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _divide(groups: Iterable[Group], largest: int) -> Iterator[list[Group]]:
    """Yield the groups of each shard, in order; a group above `largest` gets a shard of its own."""
    shard: list[Group] = []
    size = 0
    for group in groups:
        if shard and size + group.num_bytes > largest:
            yield shard
            shard, size = [], 0
        shard.append(group)
        size += group.num_bytes
    yield shard
