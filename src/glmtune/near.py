"""Find the name that a user meant to type: a near spelling, or nothing rather than a guess."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

LONG = 4
"""Length in letters from which a name may differ in two letters, and a part of it is no coincidence."""


def nearest(name: str, names: Iterable[str], *, has_parts: bool = False) -> str | None:
    """Return the name nearest to a misspelled one; None if none is near or several are equally near.

    Case and surrounding blanks do not count. With `has_parts`, a part of a name is near to the whole.
    """
    word = name.strip().lower()
    distances = [(_count_edits(word, other.strip().lower(), has_parts), other) for other in names]
    near = sorted((edits, other) for edits, other in distances if edits is not None)
    # a tie between two different names is no answer; the same name twice is no tie
    is_unique = bool(near) and all(edits > near[0][0] or other == near[0][1] for edits, other in near[1:])
    return near[0][1] if is_unique else None


def nearest_file(path: Path, names: Iterable[str]) -> str | None:
    """Return the file name in `names` nearest to a missing file's; a shared suffix alone is not near."""
    near = [name for name in names if nearest(path.stem, [Path(name).stem])]
    return nearest(path.name, near) or (near[0] if near else None)


def _count_edits(one: str, other: str, has_parts: bool) -> int | None:
    """Count the letters to change; None if more than a slip of the fingers changes."""
    short = min(len(one), len(other))
    if has_parts and short >= LONG and (one in other or other in one):
        return abs(len(one) - len(other))
    # autojunk would ignore frequent letters of texts of 200 letters and more
    blocks = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    edits = sum(max(b - a, d - c) for kind, a, b, c, d in blocks if kind != "equal")
    # allowed: 1 letter of a short name (none of a single letter), 2 of a longer one, a quarter of a long one
    return edits if edits <= (max(2, short // 4) if short >= LONG else min(1, short - 1)) else None
