"""Writes the table of `docs/models.md` anew: what is possible with which family, from `glmtune.possible`.

python -m tools.possible_table
"""

from pathlib import Path

from glmtune.possible import REFUSALS, REQUESTS

BEGIN = "<!-- made by `python -m tools.possible_table` -->"
END = "<!-- end -->"
PAGES = {"models.md": ("you type", "not `{revision}`"), "models.zh.md": ("你输入", "`{revision}` 除外")}
"""By the page: the head of its first column, and how a cell names the revision that cannot."""
HEADS = {
    "ChatGLM-6B": "ChatGLM-6B",
    "ChatGLM2/ChatGLM3": "ChatGLM2, ChatGLM3",
    "GLM-4": "GLM-4-9B",
    "GLM-4-hf": "GLM-4-hf",
    "GLM-4-0414": "GLM-4-0414, GLM-Z1",
    "GLM-4.5": "GLM-4.5, GLM-4.6",
}
"""Families by the names that a reader looks for, oldest first."""
DOCS = Path(__file__).parents[1] / "docs"


def make_table(page: str) -> str:
    """The table in the language of a page."""
    head, exception = PAGES[page]
    rows = [[head, *HEADS.values()], ["---"] * (len(HEADS) + 1)]
    for request in REQUESTS:
        cells = [f"`{request}`"]
        for family in HEADS:
            refusal = REFUSALS[family].get(request)
            if refusal and refusal.revision:
                cells.append(f"✓, {exception.format(revision=refusal.revision)}")
            else:
                cells.append("–" if refusal else "✓")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


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
