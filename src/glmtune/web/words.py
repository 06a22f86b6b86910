"""The texts of the page in English and Chinese, from words.yaml."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from glmtune.files import read_text
from glmtune.language import LANGUAGES, Language
from glmtune.strict import load_yaml

FILE = Path(__file__).with_name("words.yaml")


@cache
def table() -> dict[str, dict[Language, str]]:
    """Return every text by its key, in each language."""
    rows = load_yaml(read_text(FILE))
    return {key: dict(zip(LANGUAGES, texts, strict=True)) for key, texts in rows.items()}


@dataclass(frozen=True, slots=True)
class Words:
    """The texts in one language: `words("stopped")`."""

    language: Language

    def __call__(self, key: str, **values: object) -> str:
        """Return a text, the words in braces filled in. Raises `KeyError` for an unknown key."""
        return table()[key][self.language].format(**values)


def preferred_language(accept: str) -> Language:
    """Return the language that a browser's Accept-Language asks for first, of those that there are.

    Source: RFC 9110, 12.5.4.
    """
    found: list[tuple[float, int, Language]] = []
    for place, part in enumerate(accept.split(",")):
        name, _, weight = part.strip().partition(";q=")
        own = next((each for each in LANGUAGES if name.lower().split("-")[0] == each), None)
        if own:
            quality = float(weight) if weight.replace(".", "", 1).isdigit() else 1.0
            found.append((-quality, place, own))
    return min(found)[2] if found else LANGUAGES[0]
