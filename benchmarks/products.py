"""Products with quantised weights, by rows at once: codes as they are, codes expanded, W8A8, dense.

The four linear layers of a block of the 1 B shape, in bf16; what `models/products.py` and `compute=auto` rest
on. Milliseconds for all four. On a card (fp16 before Ampere) also the products of the backward pass, and many
rows: what the limits of `models/triton_products.py` are to rest on.

    python -m benchmarks.products
    python -m benchmarks.products --device cuda --shape 6b
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
ROWS_OF_CARDS = (1, 16, 64, 256, 512, 1024, 2048, 8192)

Layer = Callable[[Tensor], Tensor]


class Block:
    """Layers that are called one after the other, each with rows of its own width."""

    def __init__(self, layers: Sequence[Layer], inputs: Sequence[Tensor], calls: int) -> None:
        self.layers, self.inputs, self.calls = layers, inputs, calls

    @torch.no_grad()
    def warm(self) -> None:
        """Call each once, and wait for it."""
        for layer, x in zip(self.layers, self.inputs, strict=True):
            layer(x)
        if self.inputs[0].is_cuda:
            torch.cuda.synchronize()

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


def ways_of_a_cpu(dense: Sequence[nn.Linear]) -> dict[str, Sequence[Layer]]:
    """Forward products of a CPU."""
    eight, four = ([QuantizedLinear(layer, bits) for layer in dense] for bits in (8, 4))
    return {
        "dense bf16": dense,
        "W8A8": [layer.multiply for layer in pack_all(FastLinear, dense)],
        "int8, codes": [by_codes(layer) for layer in eight],
        "int8, expanded": [expanded(layer) for layer in eight],
        "int4, codes": [by_codes(layer) for layer in four],
        "int4, expanded": [expanded(layer) for layer in four],
    }


def ways_of_a_card(dense: Sequence[nn.Linear]) -> dict[str, Sequence[Layer]]:
    """Forward and backward products of a card, with kernels and without, whatever the number of rows."""
    from glmtune.models.triton_kernels import multiply, multiply_back

    ways: dict[str, Sequence[Layer]] = {
        "dense": dense,
        "dense, back": [partial(torch.matmul, other=layer.weight) for layer in dense],
    }
    for bits in (8, 4):
        held = [QuantizedLinear(layer, bits) for layer in dense]
        codes = [(layer.weight, layer.weight_scale) for layer in held]
        ways |= {
            f"int{bits}, fused": [
                partial(multiply, codes=c, scale=s, bias=None, bits=bits) for c, s in codes
            ],
            f"int{bits}, fused, back": [
                partial(multiply_back, codes=c, scale=s, bits=bits) for c, s in codes
            ],
            f"int{bits}, expanded": [
                lambda x, layer=layer: nn.functional.linear(x, layer.whole(x.dtype)) for layer in held
            ],
            f"int{bits}, expanded, back": [lambda x, layer=layer: x @ layer.whole(x.dtype) for layer in held],
        }
    return ways


def main(words: Sequence[str] | None = None) -> Record:
    """Run the case; return its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=models.SHAPES, default="1b")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--calls", type=int, default=3, help="of which the fastest counts")
    options = measure.parse(parser, words)
    record = measure.begin("products", "ms", options)
    torch.manual_seed(0)
    shape = models.SHAPES[options.shape]
    width, wide = shape["hidden_size"], shape["ffn_hidden_size"]
    sizes = [(width, width + 4 * shape["kv_channels"]), (width, width), (width, 2 * wide), (wide, width)]
    is_card = options.device != "cpu"
    is_old = is_card and torch.cuda.get_device_capability(options.device) < (8, 0)
    kind = torch.float16 if is_old else torch.bfloat16
    dense = [nn.Linear(*size, bias=False).to(options.device, kind) for size in sizes]
    ways = ways_of_a_card(dense) if is_card else ways_of_a_cpu(dense)
    sides = {}
    for rows in ROWS_OF_CARDS if is_card else ROWS:
        for name, layers in ways.items():
            widths = [size[name.endswith("back")] for size in sizes]
            inputs = [torch.randn(rows, width, device=options.device).to(kind) for width in widths]
            given = [x.float() for x in inputs] if name == "W8A8" else inputs
            sides[f"{name}, {rows} rows"] = Block(layers, given, options.calls)
    record["sides"] = measure.take_turns(sides, options.rounds)
    return measure.finish(record, "products", options)


if __name__ == "__main__":
    main()
