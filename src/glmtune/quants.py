"""The ways to quantise the blocks' weights, by name."""

BITS = {"int8": 8, "int4": 4}
"""Bits of a weight, by the name of the official quantisation."""
QUANTS = (*BITS, "nf4")
"""What a `quant` setting may say."""


def name_bits(bits: int) -> str:
    """The name of an official quantisation: `int8` or `int4`."""
    return f"int{bits}"
