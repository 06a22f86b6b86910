"""The tokenizer of GLM-4-9B: byte-level BPE by tiktoken, followed by control tokens.

Facts from https://huggingface.co/THUDM/glm-4-9b-chat and https://huggingface.co/THUDM/glm-4-9b:
tokenization_chatglm.py and tokenizer_config.json.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiktoken
from transformers import AddedToken

from glmtune.errors import ConfigError
from glmtune.families import VOCABULARY
from glmtune.templates import ROLES, find_template
from glmtune.tokenizers.base import GlmTokenizer, name_in_template
from glmtune.tokenizers.files import read_ranks

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of the words that a text is split into before it is encoded."""


class ChatGLM4Tokenizer(GlmTokenizer):
    """GLM-4's tokenizer; by default the chat format is `glm4` with a Jinja template, else `glm4_base`."""

    prefix = ("[gMASK]", "<sop>")

    def __init__(
        self,
        vocab_file: str | None,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
        encode_special_tokens: bool = False,
        template: str | None = None,
        **kwargs: object,
    ) -> None:
        path = Path(vocab_file) if vocab_file else Path(str(kwargs.get("name_or_path", ""))) / VOCABULARY
        self._ids = read_ranks(path)
        self._tokens = {rank: token for token, rank in self._ids.items()}
        self._encoding = tiktoken.Encoding(
            "glm4", pat_str=SPLIT, mergeable_ranks=self._ids, special_tokens={}
        )
        self.vocab_file = str(path)
        self.template = template or ("glm4" if kwargs.get("chat_template") else "glm4_base")
        self.assistant_name = name_in_template(kwargs.get("chat_template"))
        self.encode_special_tokens = encode_special_tokens
        names = find_template(self.template).control_tokens
        # a folder without these settings gets the official ones: control tokens follow the ranks
        if not kwargs.get("added_tokens_decoder"):
            kwargs["added_tokens_decoder"] = {
                len(self._ids) + index: AddedToken(name, special=True, normalized=False)
                for index, name in enumerate(names)
            }
        for name in ("eos_token", "pad_token"):
            kwargs[name] = kwargs.get(name) or "<|endoftext|>"
        if not (kwargs.get("extra_special_tokens") or kwargs.get("additional_special_tokens")):
            kwargs["extra_special_tokens"] = list(names)
        super().__init__(
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            encode_special_tokens=encode_special_tokens,
            template=self.template,
            **kwargs,
        )

    @property
    def ranks(self) -> dict[bytes, int]:
        """Return the plain tokens and their ids."""
        return dict(self._ids)

    @property
    def vocab_size(self) -> int:
        """Count the plain tokens; `len(tokenizer)` counts control tokens too."""
        return len(self._ids)

    def get_vocab(self) -> dict[Any, int]:
        """Return every token and its id; plain tokens are bytes."""
        return {**self._ids, **self.added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text without control tokens: one that the text spells stays text."""
        return self._encoding.encode_ordinary(text)  # type: ignore[no-any-return]

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of a plain token."""
        return self._tokens[index]

    def control_id(self, name: str) -> int:
        """Return the id of a control token by its official spelling. Raises ConfigError if unknown."""
        index = self._added_tokens_encoder.get(name)
        if index is None:
            known = ", ".join(self._added_tokens_encoder)
            raise ConfigError(f"{name!r} is not a control token of {self.vocab_file}", hint=f"it has {known}")
        return int(index)

    def build_single_message(
        self, role: str, metadata: str, message: str, tokenize: bool = True
    ) -> list[int] | str:
        """Encode a turn, or with tokenize=False return its text. Raises ConfigError for an unknown role."""
        if role not in ROLES:
            raise ConfigError(f"unknown role {role!r}", hint="the roles are " + ", ".join(ROLES))
        if not tokenize:
            return f"<|{role}|>{metadata}\n{message}"
        return [
            self.control_id(f"<|{role}|>"),
            *self.encode_plain(f"{metadata}\n"),
            *self.encode_plain(message),
        ]

    def _tokenize(self, text: str, **_kwargs: object) -> list[bytes]:
        return [self._tokens[index] for index in self.encode_plain(text)]

    def _convert_token_to_id(self, token: bytes) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> bytes:
        return self._tokens.get(index, b"")

    def convert_tokens_to_string(self, tokens: Sequence[bytes | str]) -> str:
        """Join tokens to their text; half a character becomes U+FFFD."""
        parts = [token.encode() if isinstance(token, str) else token for token in tokens]
        return b"".join(parts).decode("utf-8", errors="replace")

    def _decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **_kwargs: object,
    ) -> str:
        """Decode ids; as in the official revision's transformers, spaces separate control tokens and text."""
        parts: list[str] = []
        plain: list[bytes] = []  # decoded together: a character may span several tokens
        skipped = frozenset(self.all_special_ids) if skip_special_tokens else frozenset()
        for index in [token_ids] if isinstance(token_ids, int) else token_ids:
            if index in skipped:
                continue
            if index not in self._added_tokens_decoder:
                plain.append(self._convert_id_to_token(index))
                continue
            if plain:
                parts.append(self.convert_tokens_to_string(plain))
                plain = []
            parts.append(str(self._added_tokens_decoder[index]))
        if plain:
            parts.append(self.convert_tokens_to_string(plain))
        text = (" " if spaces_between_special_tokens else "").join(parts)
        return str(self.clean_up_tokenization(text)) if clean_up_tokenization_spaces else text
