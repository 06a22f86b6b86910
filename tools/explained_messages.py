"""Writes the table of `docs/troubleshooting.md` anew: the messages that `glmtune explain` knows.

python -m tools.explained_messages
"""

from pathlib import Path

from glmtune.explanations.table import KnownMessage, known_messages

BEGIN = "<!-- made by `python -m tools.explained_messages` -->"
END = "<!-- end -->"
PAGES = {
    "troubleshooting.md": ("en", "the log says", "it means", "there", "here", ": "),
    "troubleshooting.zh.md": ("zh", "日志里写着", "意思", "原工具里", "在这里", "："),
}
"""By the page: its language, the heads of its columns, and the end of a title."""
SIGNS = 3
"""Most signs that are shown of a message."""
DOCS = Path(__file__).parents[1] / "docs"


def make_table(page: str) -> str:
    """The table in the language of a page."""
    _, *heads, _ = PAGES[page]
    rows = [heads, ["---"] * len(heads), *(_cells(row, page) for row in known_messages().values())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cells(row: KnownMessage, page: str) -> list[str]:
    language, *_, stop = PAGES[page]
    words = getattr(row, language)
    signs = (sign.split("\n")[-1].strip("^$").strip().replace("`", "") for sign in row.signs[:SIGNS])
    commands = "<br>".join(f"`{command}`" for command in row.commands)
    link = row.link.removeprefix("docs/")
    link = link.replace(".md", ".zh.md") if language == "zh" and not link.startswith("http") else link
    cells = [
        "<br>".join(f"`{sign}`" for sign in signs),
        f"**{words.title}**{stop}{words.cause} [↗]({link})",
        words.there,
        f"{words.here}<br>{commands}",
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def fill(text: str, page: str) -> str:
    """The page's text with the table between its marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{make_table(page)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write both pages."""
    for page in PAGES:
        path = DOCS / page
        path.write_text(fill(path.read_text(encoding="utf-8"), page), encoding="utf-8")


if __name__ == "__main__":
    main()
