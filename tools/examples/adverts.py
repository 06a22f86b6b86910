"""Adverts of one shop: an attribute list in the form of ADGEN, and a text in the shop's own voice.

What is said of an attribute is what glm-tiny's adverts say (`tools/glm_tiny/texts/adverts.txt`), so that what
there is to learn is the voice: how an advert opens, how it lists, how it ends.
"""

import random
from collections.abc import Mapping, Sequence

from tools.glm_tiny import adverts
from tools.glm_tiny.blocks import Entry, Row, fill

MOST_CHARACTERS = 75
"""Longest advert: training on short ones is quick."""

Slots = Mapping[str, Sequence[Entry]]


def rows(slots: Slots, rng: random.Random) -> list[dict[str, str]]:
    """Short adverts, `content` and `summary`, no attribute list twice."""
    plain = [row for row in adverts.rows(slots, rng) if row.prompt.startswith("类型#")]
    voiced = [{"content": row.prompt, "summary": _in_voice(row, slots, rng)} for row in plain]
    return [row for row in voiced if len(row["summary"]) <= MOST_CHARACTERS]


def values(content: str) -> list[tuple[str, str]]:
    """The attributes of a list such as `类型#裙*颜色#红色`."""
    pairs = (pair.partition("#") for pair in content.split("*"))
    return [(key, value) for key, _, value in pairs]


def _in_voice(row: Row, slots: Slots, rng: random.Random) -> str:
    """The advert told by the shop: `这条裙子，一，二，好。` becomes an opening, `一；二`, and an ending."""
    goods, *said = row.response.removesuffix("。").split("，")
    filling = {"goods": (goods, goods.removeprefix("这"))}
    opening, ending = (fill(rng.choice(slots[name])[0], filling) for name in ("shop_opening", "shop_ending"))
    return f"{opening}{'；'.join(said[:-1])}。{ending}"
