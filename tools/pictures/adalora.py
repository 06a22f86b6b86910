"""Draws AdaLoRA: which of each target's triplets live, over the steps of a run."""

from tools.pictures.shapes import FROZEN, LINE, TRAINED, Page

INIT_RANK, TARGET_RANK = 12, 8
BEGIN, END = 0.1, 0.8
"""Shares of the run at which pruning begins and the ranks settle."""
ORDER = "aabaabaabaab"
"""For show: whose triplet matters least, at each of the twelve prunings of three targets."""
LEFT, WIDTH = 5.55, 4.9


def draw() -> Page:
    """An adapter on the left, the life of its triplets on the right."""
    page = Page(11.0, 6.2)
    _adapter(page)
    _lives(page)
    page.legend(0.35, 0.12)
    page.bar((2.7, 0.12, 0.22, 0.22), "white", edge=LINE)
    page.text(3.02, 0.23, "pruned", align="left")
    return page


def pruned_at(number: int, total: int) -> float:
    """The share of the run at which `number` of `total` are pruned: a cubic curve (the paper)."""
    return BEGIN + (END - BEGIN) * (1 - (1 - number / total) ** (1 / 3))


def _adapter(page: Page) -> None:
    page.text(0.35, 5.75, "an adapter:   y = W x + (alpha / 12) B E A x", align="left")
    page.box((0.35, 2.9, 1.5, 2.3), FROZEN)
    page.text(1.1, 4.2, "W", size=17)
    page.text(1.1, 3.75, "frozen", size=10.5)
    lives = [True] * INIT_RANK
    for dead in (3, 6, 7, 10):
        lives[dead] = False
    for number, alive in enumerate(lives):
        colour = TRAINED if alive else "white"
        x, y = 2.1 + number * 0.1, 2.9
        page.bar((x, y, 0.075, 2.3), colour, edge=LINE)
        page.bar((3.42 + number * 0.06, 4.05 - number * 0.1, 0.06, 0.075), colour, edge=LINE)
        page.bar((4.3, 4.05 - number * 0.1, 0.85, 0.075), colour, edge=LINE)
    page.text(2.68, 5.4, "B")
    page.text(3.78, 5.4, "E")
    page.text(4.72, 5.4, "A")
    page.text(
        0.35,
        2.2,
        "A triplet is a column of B, a number of E,\n"
        "a row of A. Pruned: its number is 0.\nHere 8 of 12 live: rank 8.",
        align="left",
    )
    page.text(0.35, 1.2, "It adapts the rank of each target,\nnot the learning rate.", align="left")


def _lives(page: Page) -> None:
    lost: dict[str, list[float]] = {letter: [] for letter in "abc"}
    for number, letter in enumerate(ORDER, start=1):
        lost[letter].append(pruned_at(number, len(ORDER)))
    names = {"a": "layer 3", "b": "layer 14", "c": "layer 27"}
    for place, letter in enumerate("abc"):
        bottom = 1.05 + place * 1.55
        ends = sorted(lost[letter]) + [1.0] * (INIT_RANK - len(lost[letter]))
        for row, end in enumerate(reversed(ends)):
            page.bar((LEFT, bottom + row * 0.1, WIDTH * end, 0.075), TRAINED)
        rank = sum(end == 1.0 for end in ends)
        page.text(LEFT + 0.6, bottom + 1.32, f"{names[letter]}:   rank 12, at the end {rank}", align="left")
    for share in (BEGIN, END):
        page.line([(LEFT + WIDTH * share, 0.85), (LEFT + WIDTH * share, 5.6)], dashed=True, width=0.9)
    page.arrow((LEFT, 0.85), (LEFT + WIDTH + 0.3, 0.85))
    page.text(LEFT + WIDTH * 0.45, 0.62, "ranks are pruned, fast at first", size=10.5)
    page.text(LEFT + WIDTH * 0.9 + 0.1, 0.62, "settled", size=10.5)
    page.text(LEFT + WIDTH + 0.3, 0.3, "steps", size=10.5, align="right")
    page.text(LEFT, 5.95, "three targets of a run, mean rank 8 at the end (an example)", align="left")
