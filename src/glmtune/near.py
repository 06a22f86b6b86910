"""The name that was meant: near enough to be a slip of the fingers, or nothing is offered."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path

LONG = 4
"""Letters of a name from which on two may differ, and a part of it is told from chance."""


def nearest(name: str, names: Iterable[str], *, has_parts: bool = False) -> str | None:
    """The name nearest to one that is not there; None where none is, or several are as near. Case is nothing.

    `has_parts`: a part of a name counts as near to the whole.
    """
    word = name.strip().lower()
    found = [(_edits(word, other.strip().lower(), has_parts), other) for other in names]
    near = sorted((edits, other) for edits, other in found if edits is not None)
    is_one = bool(near) and all(edits > near[0][0] or other == near[0][1] for edits, other in near[1:])
    return near[0][1] if is_one else None


def nearest_file(path: Path, names: Iterable[str]) -> str | None:
    """As `nearest`, for a file among those of its folder: the same suffix makes no two names near."""
    near = [name for name in names if nearest(path.stem, [Path(name).stem])]
    return nearest(path.name, near) or (near[0] if near else None)


def _edits(one: str, other: str, has_parts: bool) -> int | None:
    """Letters to change; None for too many: of a short name 1, of a longer one 2, of a long one a quarter."""
    short = min(len(one), len(other))
    if has_parts and short >= LONG and (one in other or other in one):
        return abs(len(one) - len(other))
    parts = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    edits = sum(max(b - a, d - c) for kind, a, b, c, d in parts if kind != "equal")
    return edits if edits <= (max(2, short // 4) if short >= LONG else min(1, short - 1)) else None
