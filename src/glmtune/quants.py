"""Names of the quantisations of the transformer blocks' weights: int8, int4, nf4."""

BITS = {"int8": 8, "int4": 4}
"""Bits per weight of the official quantisations, by name."""
QUANTS = (*BITS, "nf4")
"""Values of a `quant` setting."""
EXTRAS = {"nf4": "bitsandbytes"}
"""The package that a quantisation needs, which is also the name of glmtune's extra that installs it."""


def name_bits(bits: int) -> str:
    """Return the name of an official quantisation: `int8` or `int4`."""
    return f"int{bits}"
