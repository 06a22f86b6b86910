"""Lists of a model's parameters by name, part and size, made without loading weights."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn

from glmtune.files import show_size
from glmtune.models.quant import quantised_layers
from glmtune.models.shards import Stored

PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("adapter", re.compile(r"\.(lora_|ranknum\.)")),
    ("prefix", re.compile(r"prefix_encoder\.")),
    ("output layer", re.compile(r"(output_layer|lm_head)\.")),
    ("embedding", re.compile(r"embed")),
    ("norms", re.compile(r"norm[^.]*\.(weight|bias)$")),
    ("attention", re.compile(r"attention\.|attn\.")),
    ("mlp", re.compile(r"mlp\.")),
    ("other", re.compile("")),
)
"""The parts of a model and the pattern of their parameters' names; the first match decides."""

_LARGE = (("experts", re.compile(r"\.experts\.")), *PARTS[2:4])  # of what quantisation leaves as it is
_BUFFERS = re.compile(r"inv_freq$")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, or in a collapsed list the equal parameters of several layers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int | None = None
    """Size on disk; None for a parameter that is in no file."""
    is_trained: bool = False
    num_weights: int | None = None
    """Number of weights that codes or scales stand for, see `count_weights`; None: one for each number."""

    @property
    def count(self) -> int:
        """Count the weights of the model that this parameter stands for."""
        return prod(self.shape) if self.num_weights is None else self.num_weights

    @property
    def part(self) -> str:
        """Return the name of the part in `PARTS` that the parameter belongs to."""
        return next(name for name, pattern in PARTS if pattern.search(self.name))


@dataclass(frozen=True, slots=True)
class Part:
    """Totals over the parameters of a part of the model."""

    name: str
    count: int
    share: float
    """Share of all parameters, 0 to 1."""
    num_bytes: int
    """Size on disk."""


def count_weights(model: nn.Module) -> dict[str, int]:
    """Count the weights that each parameter stands for, by name.

    A quantised layer's codes stand for the weights of the dense layer, its scales for none.
    """
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for path, layer in quantised_layers(model).items():
        for name, parameter in layer.named_parameters(path, recurse=False):
            if any(parameter is held for held in layer.held):
                counts[name] = layer.in_features * layer.out_features if name.endswith(".weight") else 0
    return counts


def list_parameters(model: nn.Module, stored: Mapping[str, Stored]) -> list[Parameter]:
    """List the model's parameters in its own order; those in `stored` with their dtype and size on disk."""
    parameters, counts = [], count_weights(model)
    for name, parameter in model.named_parameters():
        held = stored.get(stored_name(name))
        dtype = held.dtype if held else parameter.dtype
        num_bytes = parameter.numel() * dtype.itemsize if held else None
        facts = (tuple(parameter.shape), _short(dtype), num_bytes, parameter.requires_grad, counts[name])
        parameters.append(Parameter(name, *facts))
    return parameters


def stored_name(name: str) -> str:
    """Return a parameter's name in the files: without the additions of PEFT's wrapper."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def list_stored(stored: Mapping[str, Stored]) -> list[Parameter]:
    """List the tensors in the files as parameters, for a folder whose model cannot be built."""
    return [
        Parameter(name, held.shape, _short(held.dtype), prod(held.shape) * held.dtype.itemsize)
        for name, held in stored.items()
        if not _BUFFERS.search(name)
    ]


def count_parts(parameters: Sequence[Parameter]) -> list[Part]:
    """Sum up the parameters by part, in order of first appearance."""
    total = sum(parameter.count for parameter in parameters)
    by_part: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        by_part.setdefault(parameter.part, []).append(parameter)
    return [
        Part(
            name,
            count := sum(p.count for p in members),
            count / max(total, 1),
            sum(p.num_bytes or 0 for p in members),
        )
        for name, members in by_part.items()
    ]


def collapse(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Merge equal parameters of several layers, `layers.{0..27}.`, in order of first appearance.

    A merged parameter has the shape of a single one, and the size on disk of all.
    """
    groups: dict[tuple[str, object], list[Parameter]] = {}
    for parameter in parameters:
        kind = (
            _LAYER.sub(".{}.", parameter.name, count=1),
            (parameter.shape, parameter.dtype, parameter.is_trained),
        )
        groups.setdefault(kind, []).append(parameter)
    collapsed = []
    for (pattern, _), group in groups.items():
        first = group[0]
        if len(group) > 1:
            numbers = [int(found[1]) for parameter in group if (found := _LAYER.search(parameter.name))]
            name = pattern.replace("{}", f"{{{show_numbers(numbers)}}}")
            size = None if first.num_bytes is None else sum(parameter.num_bytes or 0 for parameter in group)
            first = replace(first, name=name, num_bytes=size)
        collapsed.append(first)
    return collapsed


def find_layers(names: Iterable[str]) -> tuple[int, ...]:
    """Return the numbers of the layers that parameters of these names belong to, in order."""
    return tuple(sorted({int(found[1]) for name in names if (found := _LAYER.search(name))}))


def show_numbers(numbers: Sequence[int]) -> str:
    """Spell numbers as `0..27` if they are a whole range, else as `0,3,7`."""
    is_range = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if is_range else ",".join(map(str, numbers))


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def describe_quantised(model: nn.Module) -> str:
    """Tell, in bytes, what of a quantised model is held as codes, and what as it is."""
    codes = {id(part) for layer in quantised_layers(model).values() for part in layer.held}
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = next((part for part, pattern in _LARGE if pattern.search(name)), "others")
        sizes["codes" if id(parameter) in codes else part] += parameter.nbytes
    kept = ", ".join(f"{part} {show_size(size)}" for part, size in sizes.most_common() if part != "codes")
    return f"{show_size(sizes['codes'])} of codes; not quantised: {kept}"
