"""LoRA by its definition and not by PEFT: a layer's weight W becomes W + scale B A.

rsLoRA and AdaLoRA have other scales, AdaLoRA's A is multiplied by E row by row, DoRA's rows get lengths of
their own. Source: arxiv.org/abs/2106.09685 (4.1), 2312.03732 (rsLoRA), 2303.10512 (3.1), 2402.09353 (4.1);
`get_pattern_key` and AdaLoRA's 1e-5 from github.com/huggingface/peft.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError

START = "base_model.model."
"""How the names in PEFT's files begin."""
_UNIT = 2.0**-24  # fp32 rounds by so large a share at most
_NORM = 2.0**-19  # a row's length in fp32, of some ten thousand numbers, is off by less (5e-7 was measured)


_ROWS = 2048  # so many are worked on at once: further copies of a whole weight would fill the memory


@dataclass(frozen=True, slots=True)
class Factors:
    """What one layer has beside its weight W (O, I)."""

    a: Tensor
    """(r, I), with AdaLoRA's E in it."""
    b: Tensor
    """(O, r)."""
    scale: float
    """What B A is multiplied by,"""
    divisor: float = 1.0
    """and divided by: AdaLoRA's scale is applied in two steps, each of which rounds."""
    lengths: Tensor | None = None
    """DoRA's, of the rows of the merged weight, (O,)."""

    @torch.no_grad()
    def merge(self, weight: Tensor) -> Tensor:
        """The merged weight in fp32."""
        merged = torch.empty(weight.shape, dtype=torch.float32)
        for rows in row_blocks(len(weight)):
            merged[rows] = self._lengthen(self._add(weight, rows, torch.float32), rows)
        return merged

    def bounds(self, weight: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The least and the largest values in fp64 that a merge in fp32 can come to."""
        whole = self._add(weight, rows, torch.float64)
        scale = abs(self.scale / self.divisor)
        longest = scale * self.b[rows].double().norm(dim=1)[:, None] * self.a.double().norm(dim=0)
        slack = _UNIT * (2 * whole.abs() + (len(self.a) + 4) * longest)
        if self.lengths is not None:
            share = self.lengths[rows].double().abs() / whole.norm(dim=1)
            slack = share[:, None] * (slack + _NORM * whole.abs())
        value = self._lengthen(whole, rows)
        return value - slack, value + slack

    def _add(self, weight: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
        product = self.b[rows].to(dtype) @ self.a.to(dtype)
        return weight[rows].to(dtype) + product * self.scale / self.divisor

    def _lengthen(self, whole: Tensor, rows: slice) -> Tensor:
        if self.lengths is None:
            return whole
        share: Tensor = self.lengths[rows].to(whole.dtype) / torch.linalg.norm(whole, dim=1)
        return whole * share[:, None]


def row_blocks(num_rows: int) -> Iterator[slice]:
    """So many rows, some after the other."""
    return (slice(start, start + _ROWS) for start in range(0, num_rows, _ROWS))


def read_factors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Factors]:
    """The factors in a PEFT folder of LoRA or AdaLoRA by their layer's name in the base.

    `tensors` and `config` are what its files hold. Raises `CheckpointError` for a layer that lacks one.
    """
    layers = {name: part for name, part in map(_split, tensors) if part in ("lora_A", "lora_embedding_A")}
    return {layer: _read(tensors, config, layer, part) for layer, part in layers.items()}


def _split(name: str) -> tuple[str, str]:
    """The layer and the part of a tensor's name."""
    layer, _, part = name.removeprefix(START).removesuffix(".weight").rpartition(".")
    return layer, part


def _read(tensors: Mapping[str, Tensor], config: Mapping[str, Any], layer: str, part: str) -> Factors:
    if part == "lora_embedding_A":  # of a table (V, C): A is (r, V), B (C, r)
        down, up = (_find(tensors, layer, f"lora_embedding_{kind}") for kind in "AB")
        return Factors(up.T, down.T, *scale_of(config, layer, len(down)))
    a, b = (_find(tensors, layer, f"lora_{kind}") for kind in "AB")
    if is_adalora(config):
        a = a * _find(tensors, layer, "lora_E")
    lengths = _find(tensors, layer, "lora_magnitude_vector") if config.get("use_dora") else None
    return Factors(a, b, *scale_of(config, layer, len(a)), lengths)


def _find(tensors: Mapping[str, Tensor], layer: str, part: str) -> Tensor:
    name = f"{layer}.{part}"
    places = (f"{start}{name}{end}" for start in (START, "") for end in (".weight", ""))
    found = next((tensors[name] for name in places if name in tensors), None)
    if found is None:
        raise CheckpointError(f"{name} is missing", hint="copy the adapter's files again")
    return found.float()


def scale_of(config: Mapping[str, Any], layer: str, rank: int) -> tuple[float, float]:
    """What B A is multiplied by, and what then divides it."""
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha", 8))
    if is_adalora(config):  # the ranks change, the scale stays
        return float(alpha), config.get("init_r", 12) + 1e-5
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank)), 1.0


def is_adalora(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is AdaLoRA's, whose ranks change while it trains."""
    return config.get("peft_type") == "ADALORA"


def _by_pattern(patterns: Mapping[str, float] | None, layer: str, default: float) -> float:
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", layer))
    return next(found, default)


def is_part(name: str) -> bool:
    """Whether a tensor of a PEFT folder is a part of a layer's factors that `read_factors` knows."""
    return _split(name)[1] in _PARTS


_PARTS = {
    "lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
}  # fmt: skip
"""The end of a tensor's name, without `.weight`."""
