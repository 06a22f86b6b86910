"""LoRA computed by its definition, without PEFT: a layer's weight W becomes W + scale B A.

rsLoRA and AdaLoRA have other scales, AdaLoRA multiplies A by E row by row, DoRA gives each row of the merged
weight a learned length. Source: arxiv.org/abs/2106.09685 (4.1), 2312.03732 (rsLoRA), 2303.10512 (3.1),
2402.09353 (4.1); `get_pattern_key` and AdaLoRA's 1e-5 from github.com/huggingface/peft.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError

START = "base_model.model."
"""Start of the names of tensors in PEFT's files."""
_UNIT = 2.0**-24  # largest relative error of one rounding to fp32
_NORM = 2.0**-19  # bound on the relative error of a row's length in fp32, over some 10,000 numbers; 5e-7 seen
_ROWS = 2048  # rows merged at once: further copies of a whole weight would fill the memory


@dataclass(frozen=True, slots=True)
class Factors:
    """The low-rank update of one layer with the weight W (O, I)."""

    a: Tensor
    """A (r, I); for AdaLoRA already multiplied by E."""
    b: Tensor
    """B (O, r)."""
    scale: float
    """Factor of B A."""
    divisor: float = 1.0
    """Divisor of scale B A, for AdaLoRA: its scale is applied in two steps, each of which rounds."""
    lengths: Tensor | None = None
    """DoRA's magnitudes: lengths (O,) of the rows of the merged weight."""
    strength: float = 1.0
    """DoRA's share of the way from W to the merged weight; of the others `scale` holds it."""

    def at(self, strength: float) -> "Factors":
        """Return the factors of the update times `strength`."""
        if self.lengths is None:
            return replace(self, scale=self.scale * strength)
        return replace(self, strength=strength)

    @torch.no_grad()
    def merge(self, weight: Tensor) -> Tensor:
        """Return the merged weight (O, I) in fp32."""
        merged = torch.empty(weight.shape, dtype=torch.float32)
        for rows in row_blocks(len(weight)):
            merged[rows] = self._lengthen(self._add(weight, rows, torch.float32), rows)
            if self.strength != 1:
                merged[rows] = torch.lerp(weight[rows].float(), merged[rows], self.strength)
        return merged

    def bounds(self, weight: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the smallest and largest values, in fp64, that a merge in fp32 can give these rows.

        The slack adds up one rounding of the weight, the sum, the scales and each of the r products.
        """
        whole = self._add(weight, rows, torch.float64)
        scale = abs(self.scale / self.divisor)
        longest = scale * self.b[rows].double().norm(dim=1)[:, None] * self.a.double().norm(dim=0)
        slack = _UNIT * (2 * whole.abs() + (len(self.a) + 4) * longest)
        if self.lengths is not None:
            share = self.lengths[rows].double().abs() / whole.norm(dim=1)
            slack = share[:, None] * (slack + _NORM * whole.abs())
        value = self._lengthen(whole, rows)
        if self.strength != 1:
            own = weight[rows].double()
            slack = self.strength * slack + 4 * _UNIT * (own.abs() + value.abs())
            value = torch.lerp(own, value, self.strength)
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
    """Yield slices of at most 2048 rows that together cover `num_rows`."""
    return (slice(start, start + _ROWS) for start in range(0, num_rows, _ROWS))


def read_factors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Factors]:
    """Return the factors in a LoRA or AdaLoRA folder by the names of their layers in the base.

    `tensors` and `config` are the contents of the folder's files. Raises `CheckpointError` for a layer of
    which a factor is missing.
    """
    factors = {}
    for layer, part in map(_split, tensors):
        if part == "lora_embedding_A":
            # of a table (V, C): A is (r, V), B (C, r), the transposed of a layer's
            down, up = (_find(tensors, layer, f"lora_embedding_{kind}") for kind in "AB")
            factors[layer] = Factors(up.T, down.T, *scale_of(config, layer, len(down)))
        elif part == "lora_A":
            a, b = (_find(tensors, layer, f"lora_{kind}") for kind in "AB")
            if is_adalora(config):
                a = a * _find(tensors, layer, "lora_E")  # (r, I) * (r, 1): diag(E) A
            lengths = _find(tensors, layer, "lora_magnitude_vector") if config.get("use_dora") else None
            factors[layer] = Factors(a, b, *scale_of(config, layer, len(a)), lengths)
    return factors


def _split(name: str) -> tuple[str, str]:
    """Split a tensor's name into its layer and the factor, as `lora_A`."""
    layer, _, part = name.removeprefix(START).removesuffix(".weight").rpartition(".")
    return layer, part


def _find(tensors: Mapping[str, Tensor], layer: str, part: str) -> Tensor:
    name = f"{layer}.{part}"
    # files of several PEFT versions, and of other programs, leave out the start or the end
    spellings = (f"{start}{name}{end}" for start in (START, "") for end in (".weight", ""))
    tensor = next((tensors[spelling] for spelling in spellings if spelling in tensors), None)
    if tensor is None:
        raise CheckpointError(f"{name} is missing", hint="copy the adapter's files again")
    return tensor.float()


def scale_of(config: Mapping[str, Any], layer: str, rank: int) -> tuple[float, float]:
    """Return the factor of B A in a layer of this rank, and the divisor applied after it."""
    patterns = (config.get("alpha_pattern") or {}).items()
    # PEFT's own match: the first pattern that fits the end of the layer's name
    alphas = (value for pattern, value in patterns if re.match(rf"(.*\.)?({pattern})$", layer))
    alpha = next(alphas, config.get("lora_alpha", 8))
    if is_adalora(config):  # pruning changes the ranks, the scale stays that of the first rank
        return float(alpha), config.get("init_r", 12) + 1e-5
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank)), 1.0


def is_adalora(config: Mapping[str, Any]) -> bool:
    """Return True if an adapter_config.json is AdaLoRA's, whose ranks change while it trains."""
    return config.get("peft_type") == "ADALORA"


def is_part(name: str) -> bool:
    """Return True if a tensor in a PEFT folder is one of a layer's factors that `read_factors` knows."""
    return _split(name)[1] in _PARTS


_PARTS = {
    "lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
}  # fmt: skip
"""Ends of the names of factors, without `.weight`."""
