"""The language of texts that exist in English and Chinese, by the user's locale."""

import locale
import os
from typing import Literal

Language = Literal["en", "zh"]


def language_here() -> Language:
    """Return the language of the locale: `zh` for any Chinese one, else `en`."""
    # the order in which POSIX looks; Windows has none of the variables
    named = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    name = named or locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"
