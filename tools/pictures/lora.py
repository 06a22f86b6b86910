"""Draws what LoRA trains in a block of ChatGLM2-6B or ChatGLM3-6B."""

from tools.pictures.shapes import FROZEN, PALE, TRAINED, Page

BLOCK = (
    ("RMSNorm", ""),
    ("query_key_value", "4608 x 4096"),
    ("attention", ""),
    ("dense", "4096 x 4096"),
    ("RMSNorm", ""),
    ("dense_h_to_4h", "27392 x 4096"),
    ("SwiGLU", ""),
    ("dense_4h_to_h", "4096 x 13696"),
)
"""The parts of a block from the bottom up; those with a size are linear layers."""
ADAPTED = 1
BLOCK_LEFT, BLOCK_WIDTH, FIRST_Y, ROW, BOX = 0.55, 2.7, 0.95, 0.6, 0.4


def draw(chinese: bool = False) -> Page:
    """A block on the left; its query_key_value, large, on the right."""
    page = Page(11.0, 6.2, chinese=chinese)
    _block(page)
    _adapter(page)
    page.legend(0.3, 0.07)
    count = "r = 8:  28 x 8 x (4096 + 4608) = 1,949,696"
    page.text(10.6, 0.43, (f"{count} trained", f"{count} 个参数"), align="right")
    return page


def _block(page: Page) -> None:
    middle, top = BLOCK_LEFT + BLOCK_WIDTH / 2, FIRST_Y + len(BLOCK) * ROW
    page.frame((BLOCK_LEFT - 0.25, FIRST_Y - 0.22, BLOCK_WIDTH + 0.75, top - FIRST_Y + 0.2))
    page.text(middle + 0.2, top + 0.2, ("one of 28 blocks", "28 层中的一层"), align="left")
    page.arrow((middle, FIRST_Y - 0.5), (middle, FIRST_Y))
    for number, (name, size) in enumerate(BLOCK):
        bottom = FIRST_Y + number * ROW
        page.box((BLOCK_LEFT, bottom, BLOCK_WIDTH, BOX), FROZEN if size else PALE)
        page.text(middle, bottom + BOX / 2, f"{name}   {size}" if size else name, size=10)
        page.arrow((middle, bottom + BOX), (middle, bottom + ROW))
        if number == ADAPTED:
            page.bar((BLOCK_LEFT + BLOCK_WIDTH + 0.05, bottom, 0.1, BOX), TRAINED)
    _residual(page, middle, FIRST_Y - 0.12, FIRST_Y + 4 * ROW - 0.11)
    _residual(page, middle, FIRST_Y + 4 * ROW - 0.11, top - 0.1)
    page.arrow((middle, top - 0.05), (middle, top + 0.3))


def _residual(page: Page, middle: float, start: float, end: float) -> None:
    """The way around a half block."""
    right = BLOCK_LEFT + BLOCK_WIDTH + 0.25
    page.line([(middle, start), (right, start), (right, end)], width=1.0)
    page.arrow((right, end), (middle + 0.02, end))


def _adapter(page: Page) -> None:
    """query_key_value, large: W beside A and B."""
    left, bottom, box = 5.0, 0.85, FIRST_Y + ADAPTED * ROW
    for y, target in ((box, bottom), (box + BOX, 5.45)):
        page.line([(BLOCK_LEFT + BLOCK_WIDTH + 0.15, y), (left, target)], width=0.8, dashed=True)
    page.frame((left, bottom, 5.6, 4.6))
    page.text(left + 0.2, 5.2, "query_key_value", align="left")
    page.text(7.875, 1.25, ("x   (4096 numbers a token)", "x   （每个 token 4096 个数）"))
    page.box((5.4, 2.0, 2.3, 2.0))
    page.text(6.55, 3.15, "W", size=17)
    page.text(6.55, 2.7, ("4608 x 4096, frozen", "4608 x 4096，冻结"), size=10.5)
    page.trapezium((9.2, 2.0), 2.3, 0.75, 0.75, "A   r x 4096")
    page.trapezium((9.2, 3.25), 0.75, 2.3, 0.75, "B   4608 x r")
    page.arrow((9.2, 2.75), (9.2, 3.25))
    page.text(9.33, 3.0, ("r numbers", "r 个数"), size=10, align="left")
    fork(page, bottom=1.4)
    page.text(8.65, 4.56, ("times alpha / r", "乘 alpha / r"), size=10, colour=TRAINED)
    page.arrow((7.875, 4.56), (7.875, 4.95))
    page.text(
        8.03,
        4.85,
        ("queries, keys, values   (4608)", "query、key、value   （4608）"),
        size=10.5,
        align="left",
    )


def fork(page: Page, *, bottom: float, left: float = 6.55, right: float = 9.2, top: float = 4.0) -> None:
    """The ways into W and A at 2.0 and out of W and B at `top`, into a plus in the middle."""
    middle = (left + right) / 2
    page.line([(left, 1.6), (right, 1.6)])
    page.line([(middle, bottom), (middle, 1.6)])
    page.arrow((left, 1.6), (left, 2.0))
    page.arrow((right, 1.6), (right, 2.0))
    page.line([(left, top), (left, top + 0.4), (middle - 0.16, top + 0.4)])
    page.line([(right, top), (right, top + 0.4), (middle + 0.16, top + 0.4)], colour=TRAINED, width=1.6)
    page.plus(middle, top + 0.4)
