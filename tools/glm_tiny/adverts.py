"""Adverts from attribute lists such as `类型#裙*颜色#红色*材质#棉`; every value is named in the advert."""

import random
from collections.abc import Mapping, Sequence

from tools.glm_tiny.blocks import Entry, Row

KIND = "advert"
NUM_ROWS = 2800
MOST_ATTRIBUTES = 5
ASKED = (
    "{attributes}",
    "{attributes}",
    "{attributes}",
    "请根据这些信息写一段广告：{attributes}",
    "用下面的属性写广告：{attributes}",
)
SHOWN_ALIKE = ("材质", "特点", "场合", "风格")
"""Attributes whose values differ by goods but which have one name in the prompt."""
SAID_ALIKE = (*SHOWN_ALIKE, "领型", "袖长", "款式")
"""Attributes that the advert puts into the same words, unless `says_` has their full name."""

Attributes = Sequence[tuple[str, str]]


def rows(slots: Mapping[str, Sequence[Entry]], rng: random.Random) -> list[Row]:
    """Adverts with attributes drawn at random, no attribute list twice."""
    found: dict[frozenset[tuple[str, str]], Row] = {}
    while len(found) < NUM_ROWS:
        goods, name, names = rng.choice(slots["goods"])
        attributes = [("类型", goods), *_draw(names.split(), slots, rng)]
        found.setdefault(frozenset(attributes), _row(name, attributes, slots, rng))
    return list(found.values())


def _draw(names: Sequence[str], slots: Mapping[str, Sequence[Entry]], rng: random.Random) -> Attributes:
    count = rng.randint(2, min(MOST_ATTRIBUTES, len(names)))
    return [(name, rng.choice(slots[name])[0]) for name in rng.sample(names, count)]


def _row(name: str, attributes: Attributes, slots: Mapping[str, Sequence[Entry]], rng: random.Random) -> Row:
    listed = "*".join(f"{_shown(key)}#{value}" for key, value in attributes)
    said = [rng.choice(_says(key, slots))[0].replace("{v}", value) for key, value in attributes[1:]]
    text = f"{name}，{'，'.join(said)}，{rng.choice(slots['ending'])[0]}。"
    return Row(KIND, rng.choice(ASKED).format(attributes=listed), text, _group(attributes))


def _says(key: str, slots: Mapping[str, Sequence[Entry]]) -> Sequence[Entry]:
    name = next(
        name for name in (key, *(end for end in SAID_ALIKE if key.endswith(end))) if f"says_{name}" in slots
    )
    return slots[f"says_{name}"]


def _shown(key: str) -> str:
    return next((name for name in SHOWN_ALIKE if key.endswith(name)), key)


def _group(attributes: Attributes) -> str:
    """A type and its colour, or the type and the whole list where there is no colour."""
    colour = dict(attributes).get("颜色")
    return " ".join(["advert", attributes[0][1], colour or str(sorted(attributes))])
