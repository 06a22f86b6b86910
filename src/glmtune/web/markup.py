"""Small pieces of HTML; every text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from glmtune.errors import GlmtuneError
from glmtune.web.words import Words


def lines(texts: Iterable[str], kind: str = "note") -> str:
    """Return texts as lines of a kind: `note`, `warning` or `error`."""
    return "".join(f'<p class="gt-{kind}">{escape(text)}</p>' for text in texts)


def error_lines(err: GlmtuneError, words: Words) -> str:
    """Return an error and its hint as the command line words them."""
    texts = [words("error", text=str(err)), *([words("hint", text=err.hint)] if err.hint else [])]
    return lines(texts, "error")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column names its rows."""
    names = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    return f'<div class="gt-wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
