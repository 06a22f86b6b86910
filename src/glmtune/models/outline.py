"""A model's parameters by name, part and size, without a single weight."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn

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
"""What a parameter is part of, told by its name; the first that matches."""

_BUFFERS = re.compile(r"inv_freq$")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter, or in a collapsed list the equal ones of several layers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int | None = None
    """Its size on disk; None for one that is in no file."""
    is_trained: bool = False
    num_weights: int | None = None
    """Weights that it stands for, where those are not its own numbers: see `count_weights`."""

    @property
    def count(self) -> int:
        """How many weights of the model it stands for."""
        return prod(self.shape) if self.num_weights is None else self.num_weights

    @property
    def part(self) -> str:
        """The row of `PARTS` that it belongs to."""
        return next(name for name, pattern in PARTS if pattern.search(self.name))


@dataclass(frozen=True, slots=True)
class Part:
    """The parameters of one part of the model together."""

    name: str
    count: int
    share: float
    """Of all parameters."""
    num_bytes: int
    """On disk."""


def count_weights(model: nn.Module) -> dict[str, int]:
    """How many weights each parameter stands for, by name.

    A quantised layer's codes stand for the weights of the dense layer, its scales for none.
    """
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for path, layer in quantised_layers(model).items():
        for name, parameter in layer.named_parameters(path, recurse=False):
            if any(parameter is held for held in layer.held):
                counts[name] = layer.in_features * layer.out_features if name.endswith(".weight") else 0
    return counts


def list_parameters(model: nn.Module, stored: Mapping[str, Stored]) -> list[Parameter]:
    """The model's parameters in its own order; those in `stored` with the type and size they have on disk."""
    found, counts = [], count_weights(model)
    for name, parameter in model.named_parameters():
        held = stored.get(stored_name(name))
        dtype = held.dtype if held else parameter.dtype
        num_bytes = parameter.numel() * dtype.itemsize if held else None
        facts = (tuple(parameter.shape), _short(dtype), num_bytes, parameter.requires_grad, counts[name])
        found.append(Parameter(name, *facts))
    return found


def stored_name(name: str) -> str:
    """A parameter's name in the files, without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def list_stored(stored: Mapping[str, Stored]) -> list[Parameter]:
    """What the files hold, where nothing better is known of the model."""
    return [
        Parameter(name, held.shape, _short(held.dtype), prod(held.shape) * held.dtype.itemsize)
        for name, held in stored.items()
        if not _BUFFERS.search(name)
    ]


def count_parts(parameters: Sequence[Parameter]) -> list[Part]:
    """Count by part, in order of first appearance."""
    total = sum(parameter.count for parameter in parameters)
    mine: dict[str, list[Parameter]] = {}
    for parameter in parameters:
        mine.setdefault(parameter.part, []).append(parameter)
    return [
        Part(
            name,
            count := sum(p.count for p in found),
            count / max(total, 1),
            sum(p.num_bytes or 0 for p in found),
        )
        for name, found in mine.items()
    ]


def collapse(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Equal parameters of several layers as one, `layers.{0..27}.`; in the order of first appearance."""
    groups: dict[tuple[str, object], list[Parameter]] = {}
    for parameter in parameters:
        kind = (
            _LAYER.sub(".{}.", parameter.name, count=1),
            (parameter.shape, parameter.dtype, parameter.is_trained),
        )
        groups.setdefault(kind, []).append(parameter)
    return [_as_one(pattern, group) for (pattern, _), group in groups.items()]


def _as_one(pattern: str, group: list[Parameter]) -> Parameter:
    first = group[0]
    if len(group) == 1:
        return first
    numbers = [int(found[1]) for parameter in group if (found := _LAYER.search(parameter.name))]
    num_bytes = None if first.num_bytes is None else sum(parameter.num_bytes or 0 for parameter in group)
    return replace(first, name=pattern.replace("{}", f"{{{show_numbers(numbers)}}}"), num_bytes=num_bytes)


def find_layers(names: Iterable[str]) -> tuple[int, ...]:
    """The numbers of the layers that these parameters lie in."""
    return tuple(sorted({int(found[1]) for name in names if (found := _LAYER.search(name))}))


def show_numbers(numbers: Sequence[int]) -> str:
    """`0..27` for a whole range, else `0,3,7`."""
    is_range = len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}..{numbers[-1]}" if is_range else ",".join(map(str, numbers))


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
