"""Count the tokens of texts, each encoded once."""

import numpy as np
from numpy.typing import NDArray

from glmtune.tokenizers.protocol import Tokenizer


class TokenCounts:
    """Knows the ids of each text again: most of a conversation stays the same from one cut to the next."""

    def __init__(self, tokenizer: Tokenizer, known: dict[str, NDArray[np.int32]] | None = None) -> None:
        """`known`: ids of texts; those of further texts are added."""
        self.tokenizer = tokenizer
        self._ids = {} if known is None else known

    def ids(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text."""
        if (found := self._ids.get(text)) is None:
            found = self._ids[text] = np.array(self.tokenizer.encode_plain(text), np.int32)
        return found

    def ends(self, text: str) -> list[int]:
        """Return the number of characters up to each token's end in a text, as the vocabulary writes it."""
        return self.tokenizer.token_ends(self.ids(text).tolist())

    def __call__(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self.ids(text))
