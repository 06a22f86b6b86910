"""Tables that programs of this folder write into pages of the docs, each between a mark and `END`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
END = "<!-- end -->"


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as Markdown, the first one as heads."""
    lined = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lined)


def with_table(text: str, mark: str, made: str) -> str:
    """A page's text with a table behind its mark, in place of the one that was there."""
    before, rest = text.split(mark)
    return f"{before}{mark}\n\n{made}\n\n{END}{rest.split(END, 1)[1]}"


def write_pages(pages: Iterable[str], fill: Callable[[str, str], str]) -> None:
    """Write pages anew: `fill` makes a page's text of its present one and its name."""
    for page in pages:
        path = DOCS / page
        path.write_text(fill(path.read_text(encoding="utf-8"), page), encoding="utf-8")
