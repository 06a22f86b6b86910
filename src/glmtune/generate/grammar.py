"""Forms that answers follow, JSON or tool calls: llguidance says which tokens may come next.

Source: https://github.com/guidance-ai/llguidance (docs/syntax.md).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glmtune.errors import ConfigError, first_line
from glmtune.extras import require
from glmtune.generate.answer_rules import calls_rule, json_rule
from glmtune.templates.calls import Functions
from glmtune.templates.messages import THOUGHT_BEGIN, THOUGHT_END
from glmtune.tokenizers.protocol import Tokenizer

_THOUGHT = "thought[lazy]: /(.|\\n)*" + THOUGHT_END.replace("/", r"\/") + "/"
"""GLM-Z1's thought, which its prompt begins and plain text ends."""

MOST_SOURCE = 2**18
"""Characters of a grammar: those of the schemas of a hundred tools have a tenth."""


class Vocabulary:
    """A tokenizer's tokens as llguidance reads them; made once, as it takes a second for 150,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int]) -> None:
        """`stop_ids`: any of them may end an answer. Raises `MissingDependencyError` without llguidance."""
        guidance: Any = require("llguidance", extra="serve")
        self._make = guidance.LLMatcher
        self.bos_token_id = None
        self.eos_token_id = min(stop_ids)
        self._encode = tokenizer.encode_plain
        self._control = lambda name: f"<[{tokenizer.control_id(name)}]>"
        self._calls = tokenizer.chat_format.calls
        self._thought = ""
        chat_format = tokenizer.chat_format
        if chat_format.begins_thought:
            self._thought = "thought"
        elif THOUGHT_BEGIN in chat_format.control_tokens and THOUGHT_END in chat_format.control_tokens:
            begin, end = map(self._control, (THOUGHT_BEGIN, THOUGHT_END))
            self._thought = rf"(/\n?/ {begin} /(.|\n)*/ {end})?"
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

    def json(self, schema: Mapping[str, Any], field: str = "response_format") -> "Grammar":
        """Return a grammar for an answer in JSON. Raises `ConfigError` for a schema nobody can follow.

        `field`: the name of the schema in errors.
        """
        # an answer begins with a line break or a space, as the chat format taught
        return self._grammar(field, "/[ \\n]{0,2}/", f"answer: {json_rule(schema)}")

    def calls(self, functions: Functions, *, is_one: bool) -> "Grammar":
        """Return a grammar for an answer of tool calls alone. Raises `ConfigError` as `json`.

        `is_one`: it ends with its first call.
        """
        if self._calls is None:
            raise ConfigError(
                "tool_choice: this chat format has no tool calls", hint="leave out tools and tool_choice"
            )
        # a call of a turn of its own begins at once: a line break in front would make it a text
        lead = "" if self._calls.is_whole_turn and not self._thought else "/\\n{0,2}/"
        try:
            rules = calls_rule(self._calls, functions, self._control, is_one=is_one)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as err:
            found = f"{type(err).__name__}: {first_line(err):.200}"
            raise ConfigError(
                f"tools: a tool's parameters are no JSON schema: {found}",
                hint="see https://json-schema.org/understanding-json-schema",
            ) from None
        return self._grammar("tools", lead, rules)

    def _grammar(self, field: str, lead: str, rules: str) -> "Grammar":
        source = "\n".join([f"start: {self._thought} {lead} answer", _THOUGHT, rules])
        if len(source) > MOST_SOURCE:
            raise ConfigError(
                f"{field}: too large a schema: {len(source):,} characters of rules, at most {MOST_SOURCE:,}",
                hint="a smaller schema, or fewer tools",
            )
        matcher = self._make(self._tokenizer, self._make.grammar_from_lark(source), log_level=0)
        if matcher.is_error():
            problem = str(matcher.get_error()).strip().partition("\n")[0]
            raise ConfigError(
                f"{field}: this schema cannot be followed: {problem:.200}",
                hint="leave out what the message names",
            )
        return Grammar(matcher, len(self.tokens))


class Grammar:
    """The state of one answer that follows a form."""

    def __init__(self, matcher: Any, size: int) -> None:  # Any: llguidance's LLMatcher
        """`size`: tokens that the matcher knows."""
        self._matcher = matcher
        self._size = size

    @property
    def problem(self) -> str:
        """The reason why no token may come next; empty while one may."""
        told = str(self._matcher.get_error()).strip().partition("\n")[0] if self._matcher.is_error() else ""
        return f"the answer can no longer follow its schema: {told:.200}" if told else ""

    def mask(self, size: int) -> Tensor:
        """Return the tokens that may come next, True = may, (V,), none with a `problem`; `size`: V."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.zeros(size, bool)
        count = min(size, self._size)
        # a schema whose possibilities are too many for llguidance is told by its error alone
        if not self._matcher.is_error():
            found[:count] = np.unpackbits(bits, bitorder="little")[:count]
        return torch.from_numpy(found)

    def take(self, token: int) -> None:
        """Go on behind a token that was drawn; a token outside the mask is a `problem`."""
        self._matcher.consume_token(token)
