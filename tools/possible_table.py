"""Writes the table of `docs/models.md` anew: what is possible with which family, from `glmtune.possible`.

python -m tools.possible_table
"""

from tools.pages import table, with_table, write_pages

from glmtune.possible import REFUSALS, REQUESTS

MARK = "<!-- made by `python -m tools.possible_table` -->"
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


def make_table(page: str) -> str:
    """The table in the language of a page."""
    head, exception = PAGES[page]
    rows = [[head, *HEADS.values()]]
    for request in REQUESTS:
        cells = [f"`{request}`"]
        for family in HEADS:
            refusal = REFUSALS[family].get(request)
            if refusal and refusal.revision:
                cells.append(f"✓, {exception.format(revision=refusal.revision)}")
            else:
                cells.append("–" if refusal else "✓")
        rows.append(cells)
    return table(rows)


def fill(text: str, page: str) -> str:
    """The page's text with the table behind its mark."""
    return with_table(text, MARK, make_table(page))


if __name__ == "__main__":
    write_pages(PAGES, fill)
