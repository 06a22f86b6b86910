"""Small pieces of HTML; every text is escaped."""

from collections.abc import Iterable
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
