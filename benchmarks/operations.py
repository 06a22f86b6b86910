"""What a step of LoRA has to compute, and how fast a machine multiplies matrices of the model's shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import seconds_of
from glmtune.processor import has_bf16

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
TAKES = 3
"""Of a product, the fastest counts."""


@dataclass(frozen=True)
class Work:
    """Rows of a step: their lengths, and how many of their tokens are learned."""

    lengths: Sequence[int]
    learned: int

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Widths:
    """The layers' products as (inputs, outputs), how many layers, heads x head size, and the vocabulary."""

    layers: int
    products: Sequence[tuple[int, int]]
    head: tuple[int, int]
    attention: int

    @classmethod
    def of(cls, shape: Mapping[str, int], vocabulary: int, groups: int = 2) -> "Widths":
        """Those of ChatGLM2's architecture; transformers' classes have the same, some of them in parts."""
        width, ffn, size = shape["hidden_size"], shape["ffn_hidden_size"], shape["kv_channels"]
        heads = shape["num_attention_heads"] * size
        products = [(width, heads + 2 * groups * size), (heads, width), (width, 2 * ffn), (ffn, width)]
        return cls(shape["num_layers"], products, (width, vocabulary), heads)

    def useful(self, work: Work) -> float:
        """Operations that no way of training LoRA can leave out.

        Forward and the gradient of the input for every token and weight, that of the head for learned tokens,
        and causal attention: two products forward and four back, of half a square each.
        """
        weights = self.layers * sum(inputs * outputs for inputs, outputs in self.products)
        squares = sum(length**2 for length in work.lengths)
        head = self.head[0] * self.head[1]
        return (
            4.0 * (weights * work.tokens + head * work.learned) + 6.0 * self.layers * self.attention * squares
        )


class MatrixPeak:
    """A side that only multiplies, forward and back, the layers' shapes by so many rows; tokens a second.

    Its figure is what training would reach if nothing but its useful operations took time, at this speed.
    """

    def __init__(self, widths: Widths, work: Work, dtype: torch.dtype, device: str = "cpu") -> None:
        self.widths, self.work, self.dtype, self.device = widths, work, dtype, device
        self.gflops = 0.0

    def warm(self) -> None:
        """Multiply once."""
        self.run()

    @torch.no_grad()
    def run(self) -> float:
        """Tokens a second; keeps the GFLOP a second."""
        widths, work = self.widths, self.work
        seconds = widths.layers * sum(self._take(work.tokens, *product) for product in widths.products)
        seconds += self._take(work.learned, *widths.head)
        weights = widths.layers * sum(inputs * outputs for inputs, outputs in widths.products)
        done = 4.0 * (weights * work.tokens + widths.head[0] * widths.head[1] * work.learned)
        self.gflops = done / seconds / 1e9
        return work.tokens * done / seconds / widths.useful(work)

    def _take(self, rows: int, inputs: int, outputs: int) -> float:
        weight = torch.randn(outputs, inputs, dtype=self.dtype, device=self.device)
        x = torch.randn(rows, inputs, dtype=self.dtype, device=self.device)

        def multiply() -> Tensor:
            back = torch.nn.functional.linear(x, weight) @ weight
            if weight.is_cuda:
                torch.cuda.synchronize()
            return back

        multiply()
        return min(seconds_of(multiply) for _ in range(TAKES))


def matrix_peaks(widths: Widths, work: Work) -> dict[str, MatrixPeak]:
    """The peak of each type that this processor has instructions for; without them bf16 takes minutes."""
    half = [torch.bfloat16] if has_bf16(torch.device("cpu")) else []
    return {NAMES[dtype]: MatrixPeak(widths, work, dtype) for dtype in (torch.float32, *half)}
