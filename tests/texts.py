"""Random texts for tests of scores: words jieba knows and does not, other scripts, white space, dots."""

import random
from functools import cache

import jieba
from hypothesis import strategies as st

MARKS = [
    *"。！？?，、；：…“”‘’（）《》.,!-_%+#&/\\@0aZé漢龥鿕鿖𠀀",
    *("......", "..", "……", "。”", "？’", "3.14%", "v2.0-b", "C++", "AT&T", "iPhone", "hello", "😀"),
    *(" ", "  ", "\n", "\r\n", "\r", "\t", "\x1c", "\x85", "\u3000", "\u2028", "\u200b"),
]


@cache
def known_words() -> list[str]:
    """Some thousands of words of jieba's dictionary, and beginnings of words."""
    jieba.initialize()
    return random.Random(0).sample(sorted(jieba.dt.FREQ), 5000)


def pieces() -> st.SearchStrategy[str]:
    """A word, a mark, a Chinese character, or any text."""
    characters = st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)
    return st.one_of(
        st.deferred(lambda: st.sampled_from(known_words())),
        st.sampled_from(MARKS),
        characters,
        st.text(max_size=6),
    )


def texts(max_pieces: int = 40) -> st.SearchStrategy[str]:
    """A text of pieces, perhaps empty."""
    return st.lists(pieces(), max_size=max_pieces).map("".join)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two texts, neither of white space alone, that share some of their pieces."""
    pool = draw(st.lists(pieces(), min_size=1, max_size=12))
    text = st.lists(st.sampled_from(pool), min_size=1, max_size=40).map("".join)
    return draw(text.filter(str.strip)), draw(text.filter(str.strip))


def long_text(seed: int, num_characters: int = 2000) -> str:
    """Words and marks at random."""
    source = random.Random(seed)
    words = source.choices(known_words(), k=300) + MARKS * 5
    text = "".join(source.choices(words, k=num_characters))
    return text[:num_characters]
