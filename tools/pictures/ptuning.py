"""Draws P-Tuning v2: learned keys and values in front of each layer's own."""

from tools.pictures.shapes import FROZEN, LINE, PALE, TRAINED, Page

LAYERS = ((1, 1.75), (2, 2.65), (28, 4.15))
NUM_PREFIX, NUM_PROMPT, NUM_ANSWER = 5, 6, 3
CELL, STEP, LEFT = 0.46, 0.52, 1.35
HEIGHT = 0.28


def draw(chinese: bool = False) -> Page:
    """Three layers, their keys and values from left to right; where the prefix comes from, on the right."""
    page = Page(11.0, 6.2, chinese=chinese)
    for number, bottom in LAYERS:
        _layer(page, number, bottom)
    page.text(0.35, 3.62, "...", size=14, align="left")
    _words(page)
    _reading(page)
    _encoder(page)
    page.legend(0.35, 0.12, frozen=("made by the frozen weights", "由冻结的权重产生"))
    return page


def _x(column: int) -> float:
    return LEFT + column * STEP


def _layer(page: Page, number: int, bottom: float) -> None:
    page.text(0.3, bottom + HEIGHT, (f"layer {number}", f"第 {number} 层"), align="left")
    for column in range(NUM_PREFIX + NUM_PROMPT + NUM_ANSWER):
        colour = TRAINED if column < NUM_PREFIX else FROZEN
        for half in (0, 1):
            page.bar((_x(column), bottom + half * (HEIGHT + 0.03), CELL, HEIGHT), colour)
        if column < NUM_PREFIX:
            page.text(_x(column) + CELL / 2, bottom + HEIGHT / 2, "v", size=10.5, colour="white")
            page.text(_x(column) + CELL / 2, bottom + HEIGHT * 1.5 + 0.03, "k", size=10.5, colour="white")


def _words(page: Page) -> None:
    """What stands in each column, and its position."""
    prompt, answer = NUM_PREFIX, NUM_PREFIX + NUM_PROMPT
    for start, count, words in (
        (0, NUM_PREFIX, ("prefix, 128 tokens", "前缀，128 个 token")),
        (prompt, NUM_PROMPT, ("prompt", "提示")), (answer, NUM_ANSWER, ("answer", "回答")),
    ):  # fmt: skip
        left, right = _x(start), _x(start + count - 1) + CELL
        page.line([(left, 1.22), (left, 1.14), (right, 1.14), (right, 1.22)], width=1.0)
        page.text((left + right) / 2, 0.92, words)
    page.text((_x(0) + _x(NUM_PREFIX - 1) + CELL) / 2, 1.46, ("no position", "没有位置"), size=10.5)
    for column in range(NUM_PROMPT + NUM_ANSWER):
        page.text(_x(prompt + column) + CELL / 2, 1.46, str(column), size=10.5)


def _reading(page: Page) -> None:
    """A query of the last layer reads everything before it."""
    bottom = LAYERS[-1][1] + 2 * HEIGHT + 0.03
    query = _x(NUM_PREFIX + NUM_PROMPT) + CELL / 2
    page.box((query - 0.55, bottom + 0.75, 1.1, 0.36), PALE, edge=LINE)
    page.text(query, bottom + 0.93, "query")
    for column in (0, 2, 4, 6, 8, 10):
        page.arrow(
            (query - 0.3 + 0.04 * column, bottom + 0.75),
            (_x(column) + CELL / 2, bottom + 0.05),
            colour=TRAINED if column < NUM_PREFIX else LINE,
        )
    page.text(
        _x(0),
        bottom + 0.93,
        ("every token reads the prefix, in every layer", "每一层里，每个 token 都读前缀"),
        align="left",
    )


def _encoder(page: Page) -> None:
    """The prefix's own table, and the network that may make it."""
    left = 8.85
    page.text(left, 5.75, ("where it comes from", "前缀从哪里来"), align="left")
    page.box((left, 4.65, 1.95, 0.8), TRAINED)
    page.text(
        left + 0.98,
        5.05,
        ("a table in fp32\n128 x 28 x 2 x 256", "一张 fp32 的表\n128 x 28 x 2 x 256"),
        size=10.5,
        colour="white",
    )
    page.text(
        left,
        4.25,
        ("1,835,008 numbers in\nChatGLM2 and ChatGLM3", "ChatGLM2、ChatGLM3：\n1,835,008 个数"),
        size=10.5,
        align="left",
    )
    page.text(
        left,
        3.72,
        ("(in ChatGLM-6B, 4096\nfor 256:  29,360,128)", "（ChatGLM-6B 是 4096，\n不是 256：29,360,128）"),
        size=10.5,
        align="left",
    )
    page.text(left, 3.12, ("with projection: true", "projection: true 时"), align="left")
    for y, words in (
        (1.3, ("table", "表")),
        (1.82, ("linear, tanh", "线性、tanh")),
        (2.34, ("linear", "线性")),
    ):
        page.box((left, y, 1.95, 0.36), TRAINED)
        page.text(left + 0.98, y + 0.18, words, size=10.5, colour="white")
        page.arrow((left + 0.98, y + 0.36), (left + 0.98, y + 0.52))
    page.text(left, 0.92, ("119,293,952 numbers", "119,293,952 个数"), size=10.5, align="left")
