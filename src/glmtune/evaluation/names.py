"""Names that rows teach a model for itself and its maker, found in answers to questions for its identity."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

UNIT = re.compile(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+")
"""A Chinese character, or a word of letters and digits."""
ALWAYS = 0.9
"""Part of the answers with a text that also have a longer one, from which the longer one is meant."""
GENERIC = 0.01
"""Part of the answers that say no name in which a text stands that is none either."""

_BETWEEN = re.compile(r"[^\w\s]|\n")
_WORDS = """我 你 您 的 是 叫 由 名字 模型 人工智能 智能 语言 助手 助理 训练 开发 创造 研发 制造 一个 一名
一位 i am is was by my name the a an me you your call called trained made built created developed assistant
model"""
_AROUND = frozenset(_WORDS.split())
"""Words that stand around names."""


def shared_names(answers: Sequence[str], known: Iterable[str], others: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names that at least half of the answers share, those in most answers first.

    A shared text grows by a character or word for as long as it is nearly always said so. Then the words at
    its edges that stand around names, or that the base says too, are taken off. Texts of one Chinese
    character or of less than three letters are no names.

    `answers`: those to questions for the identity; `known`: the base's own; `others`: those of the rows that
    do not ask for it, some of which may say the name all the same.
    """
    base = "\n".join(known).lower()
    counts = _count_shared(answers)
    found = Counter[str]()
    for text in _grown(counts):
        name = _without_edges(text, base)
        if len(name) >= (3 if name.isascii() else 2) and name.lower() not in base:
            found[name] = max(found[name], counts[text])
    shortest = [text for text in found if not any(part != text and part in text for part in found)]
    left, names = list(others), list[str]()
    # the first is a name; the others' answers without a name tell which of the rest are ordinary words
    for text in sorted(shortest, key=lambda text: (-found[text], text)):
        if names and sum(text in answer for answer in left) > GENERIC * len(left):
            continue
        names.append(text)
        left = [answer for answer in left if text not in answer]
    return tuple(names)


def _count_shared(answers: Sequence[str]) -> dict[str, int]:
    """Return the texts that at least half of the answers hold, none across a mark, and in how many."""
    least = max(2, len(answers) / 2)
    parts = [
        [(part, [unit.span() for unit in UNIT.finditer(part)]) for part in _BETWEEN.split(answer)]
        for answer in answers
    ]
    shared = dict[str, int]()
    length, is_growing = 1, True
    while is_growing:
        counts = Counter[str]()
        for answer in parts:
            texts = set[str]()
            for part, spans in answer:
                for i in range(len(spans) - length + 1):
                    start, end = spans[i][0], spans[i + length - 1][1]
                    # a text is shared only if the shorter one that it begins with is
                    if length == 1 or part[start : spans[i + length - 2][1]] in shared:
                        texts.add(part[start:end])
            counts.update(texts)
        new = {text: count for text, count in counts.items() if count >= least}
        shared |= new
        length, is_growing = length + 1, bool(new)
    return shared


def _grown(shared: dict[str, int]) -> list[str]:
    """Return the texts that no longer one nearly always takes in."""
    absorbed = set[str]()
    for text, count in shared.items():
        spans = [unit.span() for unit in UNIT.finditer(text)]
        if len(spans) > 1:
            shorter = (text[: spans[-2][1]], text[spans[1][0] :])
            absorbed |= {each for each in shorter if count >= ALWAYS * shared[each]}
    return [text for text in shared if text not in absorbed]


def _without_edges(text: str, base: str) -> str:
    """Return the text without ordinary words at its edges: of `_AROUND`, or two and more of the base's."""

    def is_plain(first: int, last: int) -> bool:
        piece = text[spans[first][0] : spans[last - 1][1]].lower()
        return piece in _AROUND or (last - first > 1 and piece in base)

    spans = [unit.span() for unit in UNIT.finditer(text)]
    first, last = 0, len(spans)
    while first < last:
        if cut := next((i for i in range(last, first, -1) if is_plain(first, i)), None):
            first = cut
        elif (cut := next((i for i in range(first, last) if is_plain(i, last)), None)) is not None:
            last = cut
        else:
            return text[spans[first][0] : spans[last - 1][1]]
    return ""
