"""JSON schemas that answers follow: llguidance says which tokens may come next.

Source: https://github.com/guidance-ai/llguidance (docs/syntax.md, docs/json_schema.md).
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmtune.errors import ConfigError
from glmtune.extras import require
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END
from glmtune.tokenizers.protocol import Tokenizer

_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's json writes it: with any, a model that is unsure could write nothing else."""


class Vocabulary:
    """A tokenizer's tokens as llguidance reads them; made once, as it takes a second for 150,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        """`stop_ids`: any of them may end an answer. Raises `MissingDependencyError` without llguidance."""
        guidance: Any = require("llguidance", extra="serve")
        self._make = guidance.LLMatcher
        self.bos_token_id = None
        self.eos_token_id = min(stop_ids)
        self._encode = tokenizer.encode_plain
        self._thought = ""
        chat_format = tokenizer.chat_format
        if chat_format.begins_thought:
            raise ConfigError(
                "response_format: answers of this chat format begin with a thought, which is no JSON",
                hint='{"type": "text"}',
            )
        if THOUGHT_BEGIN in chat_format.control_tokens and THOUGHT_END in chat_format.control_tokens:
            begin, end = map(tokenizer.control_id, (THOUGHT_BEGIN, THOUGHT_END))
            self._thought = rf"(/\n?/ <[{begin}]> /(.|\n)*/ <[{end}]>)? "
        names = {*chat_format.control_tokens, *chat_format.stop_tokens}
        controls = {tokenizer.control_id(name): name for name in names} | dict.fromkeys(stop_ids, "stop")
        # sentencepiece's mark of a space, which BPE vocabularies spell as it stands
        is_marked = "\u2581" not in tokenizer.decode(tokenizer.encode_plain("x\u2581x"))
        space = "\u2581".encode() if is_marked else b" "
        self.tokens = [
            # llguidance's mark of a token that is no text
            b"\xff" + f"[{index}]".encode()
            if index in controls
            else tokenizer.token_bytes(index).replace(space, b" ")
            for index in range(max(len(tokenizer), *(index + 1 for index in controls)))
        ]
        self._bytes = {token: index for index, token in enumerate(self.tokens)}
        self.special_token_ids = sorted(controls)
        wrapped = guidance.TokenizerWrapper(self)
        self._tokenizer = guidance.LLTokenizer(wrapped, n_vocab=len(self.tokens), eos_token=sorted(stop_ids))

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the ids of a text, as llguidance asks for them."""
        written = text if isinstance(text, bytes) else text.encode()
        # behind a line break: sentencepiece puts a space in front of a text
        ids = self._encode("\n" + written.decode("utf-8", "replace"))
        starts = (i for i in range(len(ids)) if b"".join(self.tokens[each] for each in ids[i:]) == written)
        start = next(starts, None)
        # a text that begins in a token of the line break goes byte by byte
        return [self._bytes[bytes([each])] for each in written] if start is None else ids[start:]

    def grammar(self, schema: Mapping[str, Any]) -> "Grammar":
        """Return a grammar for one answer. Raises `ConfigError` for a schema that cannot be followed."""
        written = json.dumps({**schema, "x-guidance": _WRITTEN})
        # an answer begins with a line break or a space, as the chat format taught
        source = f"start: {self._thought}/[ \\n]{{0,2}}/ answer\nanswer: %json {written}\n"
        matcher = self._make(self._tokenizer, self._make.grammar_from_lark(source), log_level=0)
        if matcher.is_error():
            problem = str(matcher.get_error()).strip().partition("\n")[0]
            raise ConfigError(
                f"response_format: this schema cannot be followed: {problem:.200}",
                hint="leave out what the message names",
            )
        return Grammar(matcher, len(self.tokens))


class Grammar:
    """The state of one answer that follows a schema."""

    def __init__(self, matcher: Any, size: int) -> None:  # Any: llguidance's LLMatcher
        """`size`: tokens that the matcher knows."""
        self._matcher = matcher
        self._size = size

    def mask(self, size: int) -> Tensor:
        """Return the tokens that may come next, True = may, (V,); `size`: V, of the model."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.zeros(size, bool)
        count = min(size, self._size)
        found[:count] = np.unpackbits(bits, bitorder="little")[:count]
        return torch.from_numpy(found)

    def take(self, token: int) -> None:
        """Go on behind a token that was drawn."""
        if not self._matcher.consume_token(token):
            raise AssertionError(f"a token outside the mask: {self._matcher.get_error()}")
