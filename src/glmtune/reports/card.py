"""card.png: a run as one picture to share, with its answers before and after, scores, time and memory."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.language import Language, own_language
from glmtune.log import tell
from glmtune.reports.canvas import new_figure, save, write
from glmtune.reports.fonts import GET_A_FONT, LEFT_OUT, find_families
from glmtune.reports.html.sections import RunPage, Tile, describe_run
from glmtune.reports.output import output_path
from glmtune.reports.plots import BEST_COLOUR
from glmtune.reports.recorded_run import RecordedRun, read_run
from glmtune.reports.texts import Text, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD_FILE = "card.png"
WIDTH, MARGIN, GAP = 8.0, 0.4, 0.16
"""Inches."""
INK, QUIET, LINE, WASH, PAGE = "#1b1f24", "#626b76", "#dfe3e8", "#f2f5f8", "#ffffff"
BODY, SMALL, HEAD, BIG = 10.5, 8.5, 20.0, 15.0
"""Sizes of letters in points."""
LEADING = 1.45
"""Distance of lines, in heights of letters."""
LETTER = 0.62
"""Width of a Latin letter, in heights of letters; a Chinese character is as wide as it is high."""
MOST_PROMPTS, MOST_LINES = 3, 5
TILES_IN_ROW = 3
SHOWN_SCORES = ("rouge-l", "bleu-4")
VERSIONS = ("glmtune", "torch", "transformers", "peft")
_WORD = re.compile(r"[\u2e80-\uffff]|[^\s\u2e80-\uffff]+|\s")


def write_card(
    run: str | Path,
    *,
    output: str | Path | None = None,
    language: Language | None = None,
    force: bool = False,
) -> Path:
    """Draw a run's card as a PNG file; return its path, by default card.png in the run's folder.

    Raises `ConfigError` for a folder that is no run and, without `force`, for another file that is there;
    `CheckpointError` for a damaged file of the run, `OutputError` if the picture cannot be written.
    """
    recorded = read_run(run)
    path = output_path(output, recorded.path, CARD_FILE, force=force)
    save(draw_card(recorded, language or own_language()), path)
    return path


def draw_card(run: RecordedRun, language: Language) -> "Figure":
    """Draw the figure of `write_card`; a text that no font here can write is warned of."""
    page = describe_run(run, run.path.resolve().name)
    card = _Card(language)
    card.head(page)
    for prompt in page.prompts[:MOST_PROMPTS]:
        card.answers(prompt.prompt, prompt.shown)
    card.tiles([*_scores(page), *page.tiles])
    packages = run.environment.get("packages") or {}
    made = [f"{name} {packages[name]}" for name in VERSIONS if name in packages]
    card.foot(" · ".join([*made, str(run.environment.get("device") or "")]).strip(" ·"))
    if find_families(card.texts) is None:
        tell(f"warning: no font here can write all of the card; {GET_A_FONT}")
    return card.finish()


def _scores(page: RunPage) -> Iterator[Tile]:
    """Yield a tile for each usual score of the run's first evaluation."""
    for head, _, values in page.scores[:1]:
        for name, value, best, _ in values:
            if name in SHOWN_SCORES:
                yield Tile(Text(*(f"{name.upper()} {words}" for words in best)), value, head)


@dataclass(frozen=True, slots=True)
class _Written:
    """A text of the card: its place in inches from the upper left corner, and its look."""

    x: float
    y: float
    words: str
    look: dict[str, Any]


class _Card:
    """A picture that grows downwards: texts and boxes are kept until the height is known."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._y = MARGIN
        self._written: list[_Written] = []
        self._boxes: list[tuple[float, float, float, float, str]] = []

    @property
    def texts(self) -> list[str]:
        """All that is written."""
        return [each.words for each in self._written]

    def head(self, page: RunPage) -> None:
        """Write the run's name, and below it its base, its method and its state."""
        room = WIDTH - 2 * MARGIN
        name = _wrap(page.name, room, HEAD, most=1)
        self._y += self._lines(MARGIN, self._y, name, size=HEAD, weight="bold")
        facts = f"{page.base} · {page.method} · {self._in(page.state)}"
        self._y += (
            self._lines(MARGIN, self._y, _wrap(facts, room, BODY, most=2), size=BODY, color=QUIET) + GAP
        )

    def answers(self, prompt: str, shown: Sequence[tuple[Text, str]]) -> None:
        """Write a prompt, and its answers in boxes side by side."""
        room = WIDTH - 2 * MARGIN
        self._y += self._lines(MARGIN, self._y, _wrap(prompt, room, BODY, most=2), size=BODY, weight="bold")
        if not shown:
            return
        width = (room - GAP * (len(shown) - 1)) / len(shown)
        texts = [_wrap(answer, width - 2 * GAP, BODY, most=MOST_LINES) for _, answer in shown]
        height = (max(map(len, texts)) * BODY + SMALL) * LEADING / 72 + 1.4 * GAP
        for number, ((when, _), lines) in enumerate(zip(shown, texts, strict=True)):
            left, is_last = MARGIN + number * (width + GAP), number == len(shown) - 1
            self._boxes.append((left, self._y, width, height, WASH))
            if is_last:
                self._boxes.append((left, self._y, 0.05, height, BEST_COLOUR))
            y = self._y + 0.8 * GAP
            y += self._lines(left + GAP, y, [self._in(when)], size=SMALL, color=QUIET)
            self._lines(left + GAP, y, lines, size=BODY)
        self._y += height + GAP

    def tiles(self, tiles: Sequence[Tile]) -> None:
        """Write figures with their names and remarks, a few to a row."""
        width = (WIDTH - 2 * MARGIN - GAP * (TILES_IN_ROW - 1)) / TILES_IN_ROW
        for start in range(0, len(tiles), TILES_IN_ROW):
            heights = [0.0]
            for number, tile in enumerate(tiles[start : start + TILES_IN_ROW]):
                left, y = MARGIN + number * (width + GAP), self._y + GAP
                for words, size, most, look in (
                    (self._in(tile.name), SMALL, 1, {"color": QUIET}),
                    (tile.value, BIG, 1, {"weight": "bold"}),
                    (self._in(tile.note) if tile.note else "", SMALL, 2, {"color": QUIET}),
                ):
                    y += self._lines(left, y, _wrap(words, width, size, most=most), size=size, **look)
                heights.append(y - self._y)
            self._y += max(heights)
        self._y += GAP

    def foot(self, words: str) -> None:
        """Write the versions below a line."""
        self._boxes.append((MARGIN, self._y, WIDTH - 2 * MARGIN, 0.01, LINE))
        self._y += GAP
        made = f"{self._in(text('made_with'))}{words}"
        lines = _wrap(made, WIDTH - 2 * MARGIN, SMALL, most=2)
        self._y += self._lines(MARGIN, self._y, lines, size=SMALL, color=QUIET)

    def finish(self) -> "Figure":
        """Draw all that was written."""
        from matplotlib.patches import Rectangle

        height = self._y + MARGIN
        figure = new_figure(width=WIDTH, height=height)
        figure.set_layout_engine("none")  # every place is given
        figure.set_facecolor(PAGE)
        axes: Axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        for left, y, width, tall, colour in self._boxes:
            axes.add_patch(Rectangle((left, y), width, tall, facecolor=colour, linewidth=0))
        for each in self._written:
            write(axes.text(each.x, each.y, "", va="top", **each.look), each.words)
        return figure

    def _lines(self, x: float, y: float, lines: Sequence[str], *, size: float, **look: object) -> float:
        """Write lines below each other; return their height in inches."""
        step = size * LEADING / 72
        for number, words in enumerate(lines):
            self._written.append(
                _Written(x, y + number * step, words, {"fontsize": size, "color": INK} | look)
            )
        return len(lines) * step

    def _in(self, words: Text) -> str:
        return str(getattr(words, self._language))


def _wrap(words: str, width: float, size: float, *, most: int) -> list[str]:
    """Break a text into at most so many lines of a width in inches; the last may end in `…`."""
    room = width * 72 / size
    longest = max(int(room / LETTER), 1)  # letters of a word without spaces, as a path
    pieces = [
        word[i : i + longest] for word in _WORD.findall(words.strip()) for i in range(0, len(word), longest)
    ]
    lines, used = [""], 0.0
    for piece in pieces:
        wide = sum(1 if letter >= "\u2e80" else LETTER for letter in piece)
        if piece == "\n" or (used + wide > room and lines[-1]):
            lines.append("")
            used = 0.0
        if piece != "\n" and (lines[-1] or not piece.isspace()):
            lines[-1] += piece
            used += wide
    lines = [line for line in lines if line.strip()]
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1].rstrip() + LEFT_OUT]
