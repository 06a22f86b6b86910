"""The ways to quantise the blocks' weights, by name."""

BITS = {"int8": 8, "int4": 4}
"""Bits of a weight, by the name of the official quantisation."""
QUANTS = (*BITS, "nf4")
"""What a `quant` setting may say."""
EXTRAS = {"nf4": "bitsandbytes"}
"""The package that a way needs, and the extra of its name."""


def name_bits(bits: int) -> str:
    """The name of an official quantisation: `int8` or `int4`."""
    return f"int{bits}"
