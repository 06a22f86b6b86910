"""Draws where the trained weights of each method lie, all methods side by side."""

from tools.pictures.shapes import FROZEN, TRAINED, Page

BLOCKS, BOTTOM, ROW, BOX = 7, 1.75, 0.48, 0.36
METHODS = (
    ("full", "every weight", "6,243,584,000", "100 GB"),
    ("freeze", "the last 3 blocks", "611,882,496", "21 GB"),
    ("lora", "beside the weights", "1,949,696", "12.5 GB"),
    ("lora on nf4", "beside 4-bit weights", "1,949,696", "4.0 GB"),
    ("ptuning", "in front of the keys", "1,835,008", "12.5 GB"),
)
"""Name, where, trained parameters of ChatGLM3-6B, weights with gradients and AdamW."""
COLUMN, LEFT, WIDTH = 1.95, 1.35, 1.2


def draw() -> Page:
    """A column of blocks for each method."""
    page = Page(11.0, 6.4)
    for number, (name, where, trained, memory) in enumerate(METHODS):
        left = LEFT + number * COLUMN
        _column(page, name, left)
        middle = left + WIDTH / 2
        page.text(middle, 6.1, name, size=13)
        page.text(middle, 5.75, where, size=10.5)
        page.text(middle, 1.05, trained)
        page.text(middle, 0.72, memory)
    for y, words in ((1.05, "trained"), (0.72, "memory")):
        page.text(0.15, y, words, align="left")
    page.legend(0.15, 0.12)
    page.text(
        10.85,
        0.23,
        "ChatGLM3-6B, r = 8, 128 prefix tokens; memory of weights, gradients, AdamW",
        size=10.5,
        align="right",
    )
    return page


def _column(page: Page, name: str, left: float) -> None:
    for row in range(-1, BLOCKS + 1):
        is_block = 0 <= row < BLOCKS
        is_trained = name == "full" or (name == "freeze" and BLOCKS - 3 <= row < BLOCKS)
        is_thin = name == "lora on nf4" and is_block
        width = WIDTH * (0.33 if is_thin else 1)
        y = BOTTOM + row * ROW
        start = left + (WIDTH - width) / 2
        page.box((start, y, width, BOX), TRAINED if is_trained else FROZEN)
        if is_block and name.startswith("lora"):
            page.bar((start + width + 0.05, y, 0.09, BOX), TRAINED)
        if is_block and name == "ptuning":
            page.bar((start - 0.14, y, 0.09, BOX), TRAINED)
        if not is_thin:
            words = "embeddings" if row < 0 else "block" if is_block else "output"
            page.text(
                left + WIDTH / 2, y + BOX / 2, words, size=10, colour="white" if is_trained else "#222222"
            )
