"""Draws blank infilling: a text with blanks, the two parts that it becomes, and who sees whom."""

from tools.pictures.computed import Blanks, blank_out, seen_by, tiny_chatglm
from tools.pictures.masks import CELL, grid
from tools.pictures.shapes import FROZEN, SECOND, TRAINED, Page, Words

WORDS: list[Words] = [
    ("the", "春天"), ("cat", "的"), ("sat", "风"), ("on", "吹"), ("the", "绿"), ("mat", "树"),
]  # fmt: skip
COLOURS = (TRAINED, SECOND)
"""Of the blanks, in the order in which they are filled."""
WIDTH, HEIGHT, STEP, LEFT = 0.78, 0.4, 0.84, 0.35


def draw(chinese: bool) -> Page:
    """The text, Part A, Part B and its targets on the left, the mask on the right."""
    page = Page(11.0, 5.9, chinese=chinese)
    blanks = blank_out()
    _text(page, blanks)
    _parts(page, blanks)
    _mask(page, blanks)
    return page


def names(blanks: Blanks) -> list[Words]:
    """Return the words in the input's columns."""
    return [
        WORDS[word] if word is not None else "[MASK]" if column < blanks.num_context else "<sop>"
        for column, word in enumerate(blanks.words)
    ]


def colour_of(blank: int | None) -> str:
    """Return a blank's colour; grey for the text around."""
    return FROZEN if blank is None else COLOURS[blank]


def _row(page: Page, y: float, cells: list[tuple[Words, str]]) -> None:
    for place, (words, colour) in enumerate(cells):
        page.cell((LEFT + place * STEP, y, WIDTH, HEIGHT), words, colour)


def _text(page: Page, blanks: Blanks) -> None:
    owner = {word: blanks.blanks[column] for column, word in enumerate(blanks.words)}
    page.text(
        LEFT,
        5.6,
        ("1.  a text; two blanks are drawn at random", "1.  一段文本，随机抽出两处空白"),
        align="left",
    )
    _row(page, 5.0, [(word, colour_of(owner[number])) for number, word in enumerate(WORDS)])


def _parts(page: Page, blanks: Blanks) -> None:
    end, words = blanks.num_context, names(blanks)
    cells = [(words[i], colour_of(blanks.blanks[i])) for i in range(len(words))]
    page.text(
        LEFT,
        4.5,
        ("2.  Part A: each blank becomes one [MASK]", "2.  A 部分：每处空白变成一个 [MASK]"),
        align="left",
    )
    _row(page, 3.9, cells[:end])
    page.text(
        LEFT,
        3.4,
        (
            "3.  Part B: the blanks' words, the blanks in random order",
            "3.  B 部分：空白里的词，空白之间次序打乱",
        ),
        align="left",
    )
    _row(page, 2.8, cells[end:])
    page.text(
        LEFT,
        1.5,
        ("4.  to be predicted, one column after the other", "4.  要预测的词，一列接一列"),
        align="left",
    )
    for place, target in enumerate(blanks.targets[end:]):
        x = LEFT + place * STEP
        page.arrow((x + WIDTH / 2, 2.75), (x + WIDTH / 2, 2.3))
        assert target is not None
        page.cell((x, 1.85, WIDTH, HEIGHT), "<eop>" if target < 0 else WORDS[target], "white")
    page.text(
        LEFT,
        0.75,
        ("Part A is read as BERT reads: both ways.\nPart B is written as GPT writes: word after word.",
         "A 部分像 BERT 那样读：双向。\nB 部分像 GPT 那样写：一个词接一个词。"),
        align="left",
    )  # fmt: skip


def _mask(page: Page, blanks: Blanks) -> None:
    left, bottom, end = 6.55, 0.55, blanks.num_context
    seen = seen_by(tiny_chatglm(), blanks.ids)

    def colour(row: int, column: int) -> str:
        return "#A6A6A6" if row < end else colour_of(blanks.blanks[row]) if column >= end else FROZEN

    page.text(
        left - 0.6,
        5.6,
        ("5.  the mask: a row sees the filled columns", "5.  掩码：每一行能看到涂色的列"),
        align="left",
    )
    grid(page, (left, bottom), seen, names(blanks), colour)
    size, cut = len(blanks.words) * CELL, bottom + (len(blanks.words) - end) * CELL
    page.line([(left, cut), (left + size, cut)], width=2.2)
    page.line([(left + end * CELL, bottom), (left + end * CELL, bottom + size)], width=2.2)
    for start, stop, name in ((0, end, "A"), (end, len(blanks.words), "B")):
        middle = (start + stop) / 2 * CELL
        page.text(left + middle, bottom - 0.22, name, size=13)
        page.text(left + size + 0.2, bottom + size - middle, name, size=13)
