"""Count the tokens of texts; of one that is being cut, by encoding anew only what stands around the cut."""

from bisect import bisect_left, bisect_right

from glmtune.templates import Segment
from glmtune.tokenizers.protocol import Tokenizer

_MARGIN = 4
"""Tokens on either side of a cut that are encoded with it."""
_DOUBT = 2
"""Tokens by which a cut may lie beside what is told without encoding anything."""
_GUARD = "\n"
"""Joins with no token behind it, so that what follows is encoded as in the middle of a text."""


class TokenCounts:
    """Knows the ids of each text again: most of a conversation stays the same from one cut to the next."""

    def __init__(self, tokenizer: Tokenizer, known: dict[str, list[int]] | None = None) -> None:
        """`known`: ids of texts; those of further texts are added."""
        self.tokenizer = tokenizer
        self._ids = {} if known is None else known
        self._cut_texts: dict[str, CutText | None] = {}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text."""
        if (found := self._ids.get(text)) is None:
            found = self._ids[text] = self.tokenizer.encode_plain(text)
        return found

    def of_cuts(self, text: str) -> "CutText | None":
        """Return the counts of a text that is cut; None if it is empty or it is not told where tokens end."""
        if text not in self._cut_texts:
            ends = self.tokenizer.token_ends(text, self.ids(text))
            self._cut_texts[text] = CutText(self, text, ends) if ends else None
        return self._cut_texts[text]

    def encode(self, segment: Segment) -> list[int]:
        """Return the ids of a segment."""
        return [self.tokenizer.control_id(segment.text)] if segment.is_control else self.ids(segment.text)

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.ids(text))


class CutText:
    """A text with its tokens: tells how many are left without the characters between two places.

    Away from the cut the tokens stay as they are. Around it a few are encoded anew, and must meet the old
    ones on either side: in byte-pair encoding the tokens are then those of the whole, since each pair of
    neighbours stands in one of the two. Other vocabularies may differ: who chooses a cut compares its text.
    """

    def __init__(self, counts: TokenCounts, text: str, ends: list[int]) -> None:
        """`ends`: the number of characters up to the end of each token."""
        self.counts, self.text, self.ends = counts, text, ends
        self.ids = counts.ids(text)
        self._known: dict[tuple[int, int], int | None] = {}

    def is_within(self, most: int, start: int, end: int) -> bool | None:
        """True if the text without `start` to `end` has at most so many tokens; None if this cannot tell."""
        ends = self.ends
        before, after = self._kept(start, end)
        fewest = before + len(self.ids) - after
        if fewest - _DOUBT > most:
            return False
        # at most each character of a token that the cut breaks becomes one
        broken = start - ends[before - 1] if before else start
        broken += ends[after - 1] - end
        if fewest + broken + _DOUBT <= most:
            return True
        count = self.count(start, end)
        return None if count is None else count <= most

    def count(self, start: int, end: int) -> int | None:
        """Return the number of tokens without `start` to `end`; None if what is around does not tell it."""
        if (start, end) in self._known:
            return self._known[start, end]
        self._known[start, end] = None
        if self.text[start - 1].isspace():
            return None  # chat formats and vocabularies leave out white space at an end
        ids, ends = self.ids, self.ends
        before, after = self._kept(start, end)
        first = bisect_right(ends, ends[before - _MARGIN - 1]) if before > _MARGIN else 0
        last = bisect_right(ends, ends[min(after + _MARGIN, len(ids)) - 1])
        around = self.text[ends[first - 1] if first else 0 : start] + self.text[end : ends[last - 1]]
        guard = self.counts.ids(_GUARD) if first else []
        found = self.counts.tokenizer.encode_plain(_GUARD + around if first else around)
        if first and found[: len(guard) + 1] != [*guard, ids[first]]:
            return None
        if last < len(ids) and found[-1] != ids[last - 1]:
            return None
        count = first + len(found) - len(guard) + len(ids) - last
        self._known[start, end] = count
        return count

    def _kept(self, start: int, end: int) -> tuple[int, int]:
        """Return the number of whole tokens before `start`, and the index of the first from `end` on."""
        # several tokens end at one character that is written as bytes: the last one completes it
        ends = self.ends
        return bisect_right(ends, start), bisect_right(ends, ends[bisect_left(ends, end)])
