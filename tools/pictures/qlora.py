"""Draws QLoRA: a linear layer held in 4 bits, beside it LoRA in fp32; and what a base takes in memory."""

from tools.pictures.lora import fork
from tools.pictures.shapes import FROZEN, LINE, TRAINED, Page

LEVELS = (
    -1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0,
    0.080, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0,
)  # fmt: skip
"""The 16 values of NF4. Source: https://arxiv.org/abs/2305.14314, appendix E."""
BLOCKS = (((3, 7, 12, 6), (9, 1, 8, 11)), ((8, 5, 7, 10), (2, 9, 6, 7)), ((13, 4, 8, 7), (5, 10, 15, 6)))
"""For show: three rows of 4-bit codes, of each row the beginnings of two blocks of 64."""
BASES = (("bf16, fp16", 12.5), ("int8", 6.8), ("nf4", 4.0), ("int4", 3.9))
"""GB of ChatGLM3-6B's weights: 5.71 B in the blocks' linear layers, 0.53 B that stay as they are."""


def draw() -> Page:
    """The layer on the left, the bars of memory on the right."""
    page = Page(11.0, 6.2)
    _layer(page)
    _memory(page)
    page.legend(0.35, 0.12)
    page.text(
        10.7,
        0.23,
        "nf4: 16 uneven levels, a scale for 64 weights;   "
        "int4, the official kind: 15 even levels, a scale for a row",
        size=10,
        align="right",
    )
    return page


def _layer(page: Page) -> None:
    page.frame((0.3, 0.6, 6.4, 5.3))
    page.text(0.5, 5.6, "query_key_value", align="left")
    page.text(3.6, 1.0, "x   in bf16")
    _codes(page)
    page.trapezium((5.3, 2.0), 2.2, 0.75, 0.75, "A   r x 4096")
    page.trapezium((5.3, 3.45), 0.75, 2.2, 0.75, "B   4608 x r")
    page.arrow((5.3, 2.75), (5.3, 3.45))
    page.text(5.43, 3.1, "fp32", align="left")
    fork(page, bottom=1.2, left=1.9, right=5.3, top=4.2)
    page.text(4.55, 4.82, "times alpha / r", colour=TRAINED)
    page.arrow((3.6, 4.76), (3.6, 5.3))
    page.text(3.75, 5.22, "queries, keys, values", align="left")


def _codes(page: Page) -> None:
    """W as codes of 4 bits in blocks with a scale each, and below them the levels that the codes mean."""
    left, bottom, cell = 0.58, 3.12, 0.22
    page.box((left - 0.1, 2.0, 2.8, 2.2), FROZEN)
    for row, blocks in enumerate(BLOCKS):
        y = bottom + row * (cell + 0.1)
        for number, codes in enumerate(blocks):
            start = left + number * 1.33
            for column, code in enumerate(codes):
                page.bar((start + column * cell, y, cell, cell), "white", edge=LINE)
                page.text(start + (column + 0.5) * cell, y + cell / 2, str(code), size=8)
            page.text(start + 4 * cell + 0.04, y + cell / 2, ".. x s", size=8.5, align="left")
    page.line([(left + 0.05, 2.62), (left + 2.55, 2.62)])
    for level in LEVELS:
        x = left + 1.3 + 1.25 * level
        page.line([(x, 2.54), (x, 2.76)], width=1.6)
    for x, words in ((-1.25, "-1"), (0.0, "0"), (1.25, "1")):
        page.text(left + 1.3 + x, 2.88, words, size=8.5)
    page.text(1.88, 2.36, "codes of 16 uneven levels,", size=9.5)
    page.text(1.88, 2.14, "a scale s for 64 weights", size=9.5)


def _memory(page: Page) -> None:
    left, inch = 7.3, 3.3 / 12.5
    page.text(left, 5.6, "ChatGLM3-6B's weights in memory", align="left")
    for number, (name, size) in enumerate(BASES):
        y = 4.55 - number * 0.85
        page.text(left, y + 0.52, f"{name}:   {size} GB", align="left")
        page.bar((left, y, size * inch, 0.3), FROZEN)
    page.text(left, 1.62, "LoRA, r = 8, with gradients", align="left")
    page.text(left, 1.36, "and AdamW:   0.03 GB", align="left")
    page.bar((left, 0.92, 0.03 * inch + 0.02, 0.3), TRAINED)
