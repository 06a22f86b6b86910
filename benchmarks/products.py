"""Products with quantised weights on a CPU, by rows at once: codes as they are, codes expanded, W8A8, dense.

The four linear layers of a block of the 1 B shape, in bf16; what `models/products.py` and `compute=auto` rest
on. Milliseconds for all four.

    python -m benchmarks.products
    python -m benchmarks.products --shape test --rounds 1 --dry      # shows that it runs
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import measure, models
from benchmarks.measure import Record, seconds_of
from glmtune.generate.fast import FastLinear, pack_all
from glmtune.models.products import find_kernel
from glmtune.models.quant import QuantizedLinear, unpack

ROWS = (1, 4, 16, 64, 256)

Layer = Callable[[Tensor], Tensor]


class Block:
    """Layers that are called one after the other, each with rows of its own width."""

    def __init__(self, layers: Sequence[Layer], inputs: Sequence[Tensor], calls: int) -> None:
        self.layers, self.inputs, self.calls = layers, inputs, calls

    @torch.no_grad()
    def warm(self) -> None:
        """Call each once."""
        for layer, x in zip(self.layers, self.inputs, strict=True):
            layer(x)

    def run(self) -> float:
        """Milliseconds, the least of some calls."""
        return 1e3 * min(seconds_of(self.warm) for _ in range(self.calls))


def by_codes(layer: QuantizedLinear) -> Layer:
    """The layer's product without expanding, whatever the number of rows."""
    codes = layer.weight.detach()
    kernel = find_kernel(codes if layer.bits == 8 else unpack(codes), layer.bits)
    assert kernel, f"no kernel for {layer}"
    return partial(kernel.multiply, scale=layer.weight_scale, bias=None)


def expanded(layer: QuantizedLinear) -> Layer:
    """The layer's product as in training."""

    def multiply(x: Tensor) -> Tensor:
        with torch.enable_grad():  # so no kernel is taken
            product: Tensor = layer(x)
        return product

    return multiply


def main(words: Sequence[str] | None = None) -> Record:
    """Run the case; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=models.SHAPES, default="1b")
    parser.add_argument("--calls", type=int, default=3, help="of which the fastest counts")
    options = measure.parse(parser, words)
    record = measure.begin("products", "ms", options)
    torch.manual_seed(0)
    shape = models.SHAPES[options.shape]
    width, wide = shape["hidden_size"], shape["ffn_hidden_size"]
    sizes = [(width, width + 4 * shape["kv_channels"]), (width, width), (width, 2 * wide), (wide, width)]
    dense = [nn.Linear(*size, bias=False).bfloat16() for size in sizes]
    eight, four = ([QuantizedLinear(layer, bits) for layer in dense] for bits in (8, 4))
    ways: dict[str, Sequence[Layer]] = {
        "dense bf16": dense,
        "W8A8": [layer.multiply for layer in pack_all(FastLinear, dense)],
        "int8, codes": [by_codes(layer) for layer in eight],
        "int8, expanded": [expanded(layer) for layer in eight],
        "int4, codes": [by_codes(layer) for layer in four],
        "int4, expanded": [expanded(layer) for layer in four],
    }
    sides = {}
    for rows in ROWS:
        inputs = [torch.randn(rows, size).bfloat16() for size, _ in sizes]
        for name, layers in ways.items():
            given = [x.float() for x in inputs] if name == "W8A8" else inputs
            sides[f"{name}, {rows} rows"] = Block(layers, given, options.calls)
    record["sides"] = measure.take_turns(sides, options.rounds)
    return measure.finish(record, "products", options)


if __name__ == "__main__":
    main()
