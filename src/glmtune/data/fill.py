"""Words for the placeholders of rows: `{{name}}` becomes 小橙."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glmtune.data.example import Example
from glmtune.data.tables import RawRow

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
"""LLaMA-Factory's data/identity.json has `{{name}}` and `{{author}}`; rows of code may have their own."""


def fill_rows(rows: Sequence[RawRow], words: Mapping[str, str]) -> tuple[list[RawRow], Counter[str]]:
    """Return the rows with `words` in place of their placeholders, and the number of rows of each word."""
    counts: Counter[str] = Counter()
    if not words:
        return [*rows], counts
    filled = []
    for row in rows:
        used: set[str] = set()
        filled.append(RawRow(row.where, _fill(row.value, words, used)))
        counts.update(used)
    return filled, Counter({name: counts[name] for name in words if name in counts})


def _fill(value: Any, words: Mapping[str, str], used: set[str]) -> Any:  # Any: JSON, returned as it came
    """Replace placeholders in all texts of a value, at every level; keys stay."""
    if isinstance(value, dict):  # a row of a table stays one
        return type(value)({key: _fill(inner, words, used) for key, inner in value.items()})
    if isinstance(value, list):
        return [_fill(inner, words, used) for inner in value]
    if not isinstance(value, str):
        return value
    used.update(name for name in PLACEHOLDER.findall(value) if name in words)
    return PLACEHOLDER.sub(lambda match: words.get(match[1], match[0]), value)


def warn_of_placeholders(examples: Sequence[Example]) -> str:
    """Return a warning of placeholders that no word has replaced, empty if there are none."""
    places: dict[str, list[str]] = {}
    for example in examples:
        text = "\n".join(message.content for message in example.messages if "{{" in message.content)
        for name in dict.fromkeys(PLACEHOLDER.findall(text)):
            places.setdefault(name, []).append(example.where)
    if not places:
        return ""
    told = [f"{{{{{name}}}}} in {len(rows):,} (first in {rows[0]})" for name, rows in places.items()]
    settings = " ".join(f"data.fill.{name}=..." for name in places)
    return f"rows with a placeholder, read as it stands: {', '.join(told)}; {settings} puts a word there"
