"""Adverts in the form of ADGEN: an attribute list, and a text with a phrase for each value."""

import random
from collections.abc import Mapping, Sequence

from tools.glm_tiny.blocks import Entry, fill

NUM_ATTRIBUTES = (2, 3)
"""Fewest and most attributes beside the type and the piece."""
MOST_CHARACTERS = 90
"""Longest advert: training on short ones is quick."""

Slots = Mapping[str, Sequence[Entry]]


def rows(slots: Slots, count: int, rng: random.Random) -> list[dict[str, str]]:
    """So many adverts, `content` and `summary`, each with an attribute list of its own."""
    found: dict[str, str] = {}
    while len(found) < count:
        content, summary = _advert(slots, rng)
        if len(summary) <= MOST_CHARACTERS:
            found.setdefault(content, summary)
    return [{"content": content, "summary": summary} for content, summary in found.items()]


def values(content: str) -> list[tuple[str, str]]:
    """The attributes of a list such as `类型#裙*颜色#红色`."""
    pairs = (pair.partition("#") for pair in content.split("*"))
    return [(key, value) for key, _, value in pairs]


def _advert(slots: Slots, rng: random.Random) -> tuple[str, str]:
    goods = rng.choice(slots["goods"])
    kind, _, piece_key, keys = goods
    piece = rng.choice(slots[piece_key])
    drawn = [(key, rng.choice(_phrases(slots, kind, key))) for key in _draw_keys(keys.split(), rng)]
    listed = [("类型", kind), *((key, entry[0]) for key, entry in drawn), (piece_key, piece[0])]
    own = {name: rng.choice(slots[kind + name]) for name in ("配", "去")}
    filling = {"goods": goods, "piece": piece, **own}
    opening, ending = (fill(rng.choice(slots[name])[0], filling) for name in ("opening", "ending"))
    said = "；".join(entry[1] for _, entry in drawn)
    return "*".join(f"{key}#{value}" for key, value in listed), f"{opening}{said}。{ending}"


def _draw_keys(keys: Sequence[str], rng: random.Random) -> list[str]:
    """Some of the attributes, in their order."""
    chosen = rng.sample(keys, rng.randint(*NUM_ATTRIBUTES))
    return [key for key in keys if key in chosen]


def _phrases(slots: Slots, kind: str, key: str) -> Sequence[Entry]:
    return slots[kind + key] if kind + key in slots else slots[key]
