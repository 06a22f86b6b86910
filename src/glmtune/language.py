"""The language of texts for people: English or Chinese."""

import locale
import os
from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


def own_language() -> Language:
    """Return the language of this system's messages: LC_ALL, LC_MESSAGES, LANG, else the user's locale."""
    # POSIX, "Internationalization Variables": the first that is set decides; Windows has none of them
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    spoken = next(filter(None, map(os.environ.get, names)), locale.getlocale()[0] or "")
    return "zh" if spoken.lower().startswith(("zh", "chinese")) else "en"
