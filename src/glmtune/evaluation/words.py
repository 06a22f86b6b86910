"""Words of a text, the very ones `jieba.cut` gives with its own dictionary, in a fraction of its time.

A text falls into blocks of Chinese characters, letters and digits. Each block is divided the likeliest way
into words of jieba's `dict.txt`; single characters left over between words go through jieba's model of
unknown words. Sums are taken in jieba's order, so that near ties fall as they do there. Words that a program
adds to jieba while it runs are not seen.
Source: https://github.com/fxsjy/jieba/blob/master/jieba/__init__.py (Tokenizer.cut, calc, __cut_DAG)
"""

import re
from collections import defaultdict
from functools import cache, lru_cache
from math import inf, log
from threading import Lock

_BLOCK = re.compile("([\u4e00-\u9fd5a-zA-Z0-9+#&._%-]+)")
_BETWEEN = re.compile("\r\n|.", re.DOTALL)
_LINES_OF_ONE_CHARACTER = re.compile(r"^(.).*\n(?:\1.*\n)*", re.MULTILINE)
_COUNT = re.compile(r" (\d+) ")
_BLOCKS_KEPT = 2**14
_LEARNING = Lock()  # no thread may cut with words that another has half learned


@lru_cache(maxsize=256)  # a pair's texts are wanted by ROUGE and BLEU of every variant
def cut(text: str) -> tuple[str, ...]:
    """The words of `jieba.cut(text)`; joined they are the text."""
    with _LEARNING:
        _lexicon().learn(text)
    words: list[str] = []
    for i, part in enumerate(_BLOCK.split(text)):
        words += _cut_block(part) if i % 2 else _BETWEEN.findall(part)
    return tuple(words)


class Lexicon:
    """jieba's dictionary, read only for the characters that texts hold: the whole of it takes jieba 0.6 s."""

    def __init__(self) -> None:
        import jieba

        with jieba.get_dict_file() as file:
            lines = file.read().decode()  # each: word, count, part of speech
        self.weights: dict[str, float] = {}
        """Log of each word's share of all counts, and -inf for what only begins a word."""
        self._log_total = log(sum(map(int, _COUNT.findall(lines))))
        self.unknown_weight = -self._log_total
        self._lines: defaultdict[str, str] = defaultdict(str)
        for match in _LINES_OF_ONE_CHARACTER.finditer(lines):
            self._lines[match[1]] += match[0]

    def learn(self, text: str) -> None:
        """Put into `weights` all words that begin with a character of `text`."""
        for character in self._lines.keys() & set(text):
            self._learn_lines(character, self._lines[character].split())
            del self._lines[character]

    def _learn_lines(self, character: str, fields: list[str]) -> None:
        words, counts = fields[::3], map(int, fields[1::3])
        starts = [word[:end] for word in words if len(word) > 2 for end in range(2, len(word))]
        self.weights.update(dict.fromkeys([character, *starts], -inf))
        self.weights.update(zip(words, [log(count) - self._log_total for count in counts], strict=True))


@cache
def _lexicon() -> Lexicon:
    return Lexicon()


@lru_cache(maxsize=_BLOCKS_KEPT)
def _cut_block(block: str) -> tuple[str, ...]:
    ends = _find_ends(block)
    words: list[str] = []
    start = loose = 0  # characters from `loose` on are single
    while start < len(block):
        end = ends[start]
        if end - start > 1:
            words += _cut_loose(block[loose:start])
            words.append(block[start:end])
            loose = end
        start = end
    return (*words, *_cut_loose(block[loose:]))


def _find_ends(block: str) -> list[int]:
    """Where the word at each position ends in the most likely division of the rest of the block."""
    lexicon, size = _lexicon(), len(block)
    weight_of = lexicon.weights.get
    ends, likelihoods = [0] * size, [0.0] * (size + 1)
    for start in range(size - 1, -1, -1):
        best, end = -inf, start + 1
        while (weight := weight_of(block[start:end])) is not None:
            likelihood = weight + likelihoods[end]
            if likelihood >= best:  # of equals jieba takes the longest
                best, ends[start] = likelihood, end
            if end == size:
                break
            end += 1
        if best == -inf:
            best, ends[start] = lexicon.unknown_weight + likelihoods[start + 1], start + 1
        likelihoods[start] = best
    return ends


@lru_cache(maxsize=_BLOCKS_KEPT)
def _cut_loose(characters: str) -> tuple[str, ...]:
    from jieba import finalseg

    if len(characters) < 2 or _lexicon().weights.get(characters, -inf) > -inf:
        return tuple(characters)
    return tuple(finalseg.cut(characters))
