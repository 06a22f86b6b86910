"""Draws the two positions of each token: its place in the text, and its place in the blank that it fills."""

from collections.abc import Sequence

from tools.pictures.computed import GMASK, PLAIN, SOP, blank_out, place
from tools.pictures.infilling import colour_of, names
from tools.pictures.masks import ASKED, FIRST, NUM_CONTEXT, SAID
from tools.pictures.shapes import FROZEN, LINE, TRAINED, Page, Words

WIDTH, HEIGHT, STEP, RISE, BOTTOM = 0.8, 0.4, 0.87, 0.62, 1.6


def chat_positions() -> list[tuple[int, int]]:
    """Return ChatGLM-6B's positions of `FIRST`."""
    return place([*[PLAIN] * len(ASKED), GMASK], [SOP, *[PLAIN] * len(SAID)])


def draw(chinese: bool) -> Page:
    """Tokens at their two positions: the text with two blanks on the left, a question on the right."""
    page = Page(11.0, 4.9, chinese=chinese)
    blanks = blank_out()
    _plane(
        page, 0.95, ("pre-training: two blanks", "预训练：两处空白"), blanks.positions, names(blanks),
        [colour_of(blank) for blank in blanks.blanks],
    )  # fmt: skip
    _plane(
        page, 6.4, ("chat: the answer is the blank at the end", "对话：回答就是末尾的那处空白"),
        chat_positions(), FIRST,
        [FROZEN] * (NUM_CONTEXT - 1) + [TRAINED] * (len(FIRST) - NUM_CONTEXT + 1),
    )  # fmt: skip
    page.text(
        0.35,
        0.3,
        ("ChatGLM-6B rotates half of each head by the first position, half by the second. "
         "ChatGLM2 and later count 0, 1, 2, ... in one row.",
         "ChatGLM-6B 把每个头的一半按第一个位置旋转，另一半按第二个位置旋转。"
         "ChatGLM2 以后只数一行：0、1、2……"),
        size=10.5,
        align="left",
    )  # fmt: skip
    return page


def _plane(
    page: Page,
    left: float,
    title: Words,
    places: Sequence[tuple[int, int]],
    words: Sequence[Words],
    colours: Sequence[str],
) -> None:
    across, up = (max(each) + 1 for each in zip(*places, strict=True))
    right, top = left + across * STEP, BOTTOM + up * RISE
    page.text(left - 0.6, 4.6, title, size=13, align="left")
    page.arrow((left - 0.08, BOTTOM - 0.1), (right + 0.1, BOTTOM - 0.1))
    page.arrow((left - 0.08, BOTTOM - 0.1), (left - 0.08, top + 0.15))
    for number in range(across):
        page.text(left + number * STEP + WIDTH / 2, BOTTOM - 0.3, str(number), size=10)
    for number in range(up):
        page.text(left - 0.25, BOTTOM + number * RISE + HEIGHT / 2, str(number), size=10)
    page.text(
        (left + right) / 2,
        BOTTOM - 0.62,
        ("first position: place in the text", "第一个位置：在文本里的位置"),
        size=10.5,
    )
    page.text(
        left - 0.5,
        BOTTOM + 0.1,
        ("second: place in the blank", "第二个：在空白里的位置"),
        size=10.5,
        is_upright=True,
    )
    for (x, y), word, colour in zip(places, words, colours, strict=True):
        corner = (left + x * STEP, BOTTOM + y * RISE)
        if y > 1:
            middle = corner[0] + WIDTH / 2
            page.line([(middle, corner[1]), (middle, corner[1] - RISE + HEIGHT)], colour=LINE)
        page.cell((*corner, WIDTH, HEIGHT), word, colour)
