"""Word segmentation: the same words as `jieba.cut` with its own dictionary, in a fraction of its time.

A text is split into blocks of Chinese characters, letters and digits. Each block is divided into the
likeliest sequence of words of jieba's `dict.txt`; single characters left over between words go through
jieba's model of unknown words. Floats are summed in jieba's order, so that near ties fall the same way.
Words that a program adds to jieba at run time are not seen. Source:
https://github.com/fxsjy/jieba/blob/master/jieba/__init__.py (Tokenizer.cut, calc, __cut_DAG)
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
_LEARNING = Lock()  # no thread may cut while another adds words to the lexicon


@lru_cache(maxsize=256)  # ROUGE and BLEU of every variant cut the same pair of texts
def cut(text: str) -> tuple[str, ...]:
    """Return the words of `jieba.cut(text)`; joined they are the text."""
    with _LEARNING:
        _lexicon().learn(text)
    words: list[str] = []
    for i, part in enumerate(_BLOCK.split(text)):
        words += _cut_block(part) if i % 2 else _BETWEEN.findall(part)
    return tuple(words)


class Lexicon:
    """jieba's dictionary, parsed only for the characters that texts hold: all of it takes jieba 0.6 s."""

    def __init__(self) -> None:
        import jieba

        with jieba.get_dict_file() as file:
            lines = file.read().decode()  # each: word, count, part of speech
        self.weights: dict[str, float] = {}
        """Log probability of each word; -inf for the beginning of a word that is no word itself."""
        self._log_total = log(sum(map(int, _COUNT.findall(lines))))
        self.unknown_weight = -self._log_total
        self._lines: defaultdict[str, str] = defaultdict(str)
        for match in _LINES_OF_ONE_CHARACTER.finditer(lines):
            self._lines[match[1]] += match[0]

    def learn(self, text: str) -> None:
        """Add to `weights` all words that begin with a character of `text`."""
        for character in self._lines.keys() & set(text):
            fields = self._lines[character].split()
            words, counts = fields[::3], map(int, fields[1::3])
            starts = [word[:end] for word in words if len(word) > 2 for end in range(2, len(word))]
            # beginnings first: those that are words themselves get their weight in the second line
            self.weights.update(dict.fromkeys([character, *starts], -inf))
            self.weights.update(zip(words, [log(count) - self._log_total for count in counts], strict=True))
            del self._lines[character]


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
    """Return, for each position, the end of its word in the likeliest division of the block from there on."""
    lexicon, size = _lexicon(), len(block)
    weight_of = lexicon.weights.get
    ends, likelihoods = [0] * size, [0.0] * (size + 1)
    for start in range(size - 1, -1, -1):  # Viterbi from the end: the rest of the block is divided already
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
