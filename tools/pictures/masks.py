"""Draws which token sees which: ChatGLM-6B's prefix mask beside ChatGLM2's causal one, on a question."""

from collections.abc import Callable, Sequence

from tools.pictures.computed import GMASK, PLAIN, SOP, seen_by, tiny_chatglm, tiny_chatglm2
from tools.pictures.shapes import FROZEN, SECOND, TRAINED, Page, Words
from torch import Tensor

ASKED: list[Words] = [("one", "一"), ("plus", "加"), ("one", "一"), ("?", "？")]
SAID: list[Words] = [("two", "二"), (".", "。")]
FIRST = [*ASKED, "[gMASK]", "<sop>", *SAID]
"""What ChatGLM-6B reads; the context ends in front of <sop>."""
SECOND_ROW = ["[gMASK]", "sop", *ASKED, *SAID]
"""What ChatGLM2 reads."""
NUM_CONTEXT = FIRST.index("<sop>")
CELL = 0.4


def first_mask() -> Tensor:
    """Return ChatGLM-6B's mask of `FIRST`."""
    return seen_by(tiny_chatglm(), [*[PLAIN] * len(ASKED), GMASK, SOP, *[PLAIN] * len(SAID)])


def second_mask() -> Tensor:
    """Return ChatGLM2's mask of `SECOND_ROW`."""
    return seen_by(tiny_chatglm2(), [PLAIN] * len(SECOND_ROW))


def draw(chinese: bool) -> Page:
    """Two grids: a row for each token, a column for each token that it may see."""
    page = Page(11.0, 5.6, chinese=chinese)

    def colour(row: int, column: int) -> str:
        return SECOND if column > row else FROZEN if row < NUM_CONTEXT else TRAINED

    page.text(0.35, 5.25, ("ChatGLM-6B: a prefix mask", "ChatGLM-6B：前缀掩码"), size=13, align="left")
    grid(page, (1.3, 0.75), first_mask(), FIRST, colour)
    page.text(
        6.0,
        5.25,
        ("ChatGLM2, ChatGLM3, GLM-4: a causal mask", "ChatGLM2、ChatGLM3、GLM-4：因果掩码"),
        size=13,
        align="left",
    )
    grid(page, (6.95, 0.75), second_mask(), SECOND_ROW, lambda _, __: TRAINED)
    for x in (0.35, 6.0):
        page.text(
            x,
            4.95,
            ("a row: who looks; a column: what is seen", "行：谁在看；列：看什么"),
            size=10,
            align="left",
        )
    for x, fill, words in (
        (0.35, FROZEN, ("the question sees what is before", "问题看前面")),
        (3.35, SECOND, ("... and what is behind", "……也看后面")),
        (6.0, TRAINED, ("sees what is before", "只看前面")),
        (8.6, "white", ("does not see", "看不到")),
    ):  # fmt: skip
        page.bar((x, 0.2, 0.22, 0.22), fill, edge="#999999")
        page.text(x + 0.32, 0.31, words, align="left")
    return page


def grid(
    page: Page,
    corner: tuple[float, float],
    seen: Tensor,
    words: Sequence[Words],
    colour: Callable[[int, int], str],
) -> None:
    """Draw a mask (T, T) from its lower left corner: filled where a row's token sees a column's."""
    left, bottom = corner
    size = len(words)
    for row, word in enumerate(words):
        y = bottom + (size - 1 - row) * CELL
        page.text(left - 0.1, y + CELL / 2, word, size=10, align="right")
        page.text(left + (row + 0.5) * CELL, bottom + size * CELL + 0.08, word, size=10, is_upright=True)
        for column in range(size):
            fill = colour(row, column) if seen[row, column] else "white"
            page.bar((left + column * CELL, y, CELL, CELL), fill, edge="#999999")
