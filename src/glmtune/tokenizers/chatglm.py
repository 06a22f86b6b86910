"""The tokenizer of ChatGLM2-6B and ChatGLM3-6B: a sentencepiece vocabulary, followed by control tokens.

Both have the same vocabulary file; ChatGLM3 adds four role tokens. Facts from tokenization_chatglm.py in
https://huggingface.co/THUDM/chatglm2-6b and https://huggingface.co/THUDM/chatglm3-6b.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding

from glmtune.errors import ConfigError
from glmtune.families import FAMILIES, ICE, VOCABULARY, identify, identify_family
from glmtune.templates import ROLES, TEMPLATES, Template, chatglm2_prompt, messages_from_dicts, render
from glmtune.tokenizers.base import GlmTokenizer
from glmtune.tokenizers.files import encode_batch, piece_bytes, read_sentencepiece
from glmtune.tokenizers.ice import IceTokenizer

_FIXED_TOKENS = {"unk_token": "<unk>", "pad_token": "<unk>", "eos_token": "</s>"}


class ChatGLMTokenizer(GlmTokenizer):
    """ChatGLM2's and ChatGLM3's tokenizer; `template` decides between them, by default the folder's files.

    ChatGLM-6B's folders name this class too: `from_pretrained` gives an `IceTokenizer` for them.
    """

    vocab_files_names = {"vocab_file": VOCABULARY, "ice_file": ICE}  # noqa: RUF012

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
        self.sp_model = read_sentencepiece(path)
        self.vocab_file = str(path)
        if not template:  # also "", which a lone vocabulary file leaves undecided: it is of either format
            template = identify(path.parent).template if _has_settings(path.parent) else None
        self.template = template
        self.encode_special_tokens = encode_special_tokens
        first = self.sp_model.get_piece_size()
        self._control_ids = {name: first + index for index, name in enumerate(self._format().control_tokens)}
        self._control_names = {index: name for name, index in self._control_ids.items()}
        fixed = (self.sp_model.unk_id(), self.sp_model.bos_id(), self.sp_model.eos_id())
        self._silent_ids = frozenset(fixed)
        self._named_ids = {"<pad>": fixed[0], "<bos>": fixed[1], "<eos>": fixed[2], "</s>": fixed[2]}
        # tokens that the vocabulary fixes must not be added: the official `tokenizer("</s>")` is plain text
        settings = {key: value for key, value in kwargs.items() if str(value) != _FIXED_TOKENS.get(key)}
        super().__init__(
            padding_side=padding_side,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            encode_special_tokens=encode_special_tokens,
            template=self.template,
            **settings,
        )

    @classmethod
    def _from_pretrained(
        cls, resolved_vocab_files: dict[str, str | None], name: str | Path, *args: object, **kwargs: object
    ) -> GlmTokenizer:
        ice_file, folder = resolved_vocab_files.pop("ice_file", None), Path(name)
        if "vocab_file" in kwargs:  # the caller knows the family
            is_ice = False
        elif _has_settings(folder):
            is_ice = FAMILIES[identify_family(folder).family].vocabulary == ICE
        else:  # a name on the hub: by the vocabulary that was downloaded
            is_ice = ice_file is not None and resolved_vocab_files.get("vocab_file") is None
        if is_ice:
            files = {**resolved_vocab_files, "vocab_file": ice_file}
            return IceTokenizer._from_pretrained(files, name, *args, **kwargs)  # type: ignore[no-any-return]
        return super()._from_pretrained(resolved_vocab_files, name, *args, **kwargs)  # type: ignore[no-any-return]

    def _format(self) -> Template:
        return TEMPLATES[self.template or "chatglm3"]

    @property
    def unk_token(self) -> str:
        """Return `<unk>`, which no text encodes to: unknown characters are encoded as bytes."""
        return str(self._special_tokens_map.get("unk_token") or "<unk>")

    @property
    def pad_token(self) -> str:
        """Return `<unk>`, unless another token was set."""
        return str(self._special_tokens_map.get("pad_token") or "<unk>")

    @property
    def pad_token_id(self) -> int:
        """Return the id of the pad token: 0."""
        return int(self._convert_token_to_id_with_added_voc(self.pad_token))

    @property
    def eos_token(self) -> str:
        """Return `</s>`, unless another token was set."""
        return str(self._special_tokens_map.get("eos_token") or "</s>")

    @property
    def eos_token_id(self) -> int:
        """Return the id of the token that ends a text: 2."""
        return int(self._convert_token_to_id_with_added_voc(self.eos_token))

    @property
    def control_ids(self) -> dict[str, int]:
        """Return the ids of the control tokens behind the pieces, by their official spelling."""
        return dict(self._control_ids)

    @property
    def vocab_size(self) -> int:
        """Count pieces and control tokens."""
        return int(self.sp_model.get_piece_size()) + len(self._control_ids)

    def get_vocab(self) -> dict[str, int]:
        """Return every token and its id."""
        size = self.sp_model.get_piece_size()
        pieces = dict(zip(self.sp_model.id_to_piece(list(range(size))), range(size), strict=True))
        return {**pieces, **self._control_ids, **self.added_tokens_encoder}

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text without control tokens: one that the text spells stays text."""
        return self.sp_model.encode(text)  # type: ignore[no-any-return]

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode texts as `encode_plain` does, each on its own."""
        return encode_batch(self.sp_model, list(texts))

    def token_bytes(self, index: int) -> bytes:
        """Return the text of a piece in UTF-8; for a part of a character some of its bytes."""
        return piece_bytes(self.sp_model, index)

    def control_id(self, name: str) -> int:
        """Return the id of a control token by its official spelling. Raises ConfigError if unknown."""
        index = self._control_ids.get(name, self._named_ids.get(name))
        if index is None:
            known = ", ".join([*self._control_ids, *self._named_ids])
            raise ConfigError(f"{name!r} is not a control token of {self.vocab_file}", hint=f"it has {known}")
        return int(index)

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """Build ChatGLM2's prompt text: numbered rounds of question and answer."""
        return chatglm2_prompt(query, [(question, answer) for question, answer in history or ()])

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """Encode a turn in ChatGLM3's format. Raises ConfigError for an unknown role."""
        if role not in ROLES:
            raise ConfigError(f"unknown role {role!r}", hint="the roles are " + ", ".join(ROLES))
        return [
            self.control_id(f"<|{role}|>"),
            *self.encode_plain(f"{metadata}\n"),
            *self.encode_plain(message),
        ]

    def build_chat_input(
        self, query: str, history: Sequence[Mapping[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """Build ChatGLM3's prompt as a batch of one: history, the query, and the assistant's role token."""
        rows = [*(history or ()), {"role": role, "content": query}]
        segments = render("chatglm3", messages_from_dicts(rows, "history"))
        ids = self.encode_segments(segments)
        return self.pad({"input_ids": [ids]}, return_tensors="pt")

    def _tokenize(self, text: str, **_kwargs: object) -> list[str]:
        if not self.encode_special_tokens:
            return self.sp_model.encode_as_pieces(text)  # type: ignore[no-any-return]
        # an official switch: role tokens spelled in the text become control tokens, all others stay text
        roles = [re.escape(f"<|{role}|>") for role in ROLES if f"<|{role}|>" in self._control_ids]
        tokens: list[str] = []
        for part in filter(None, re.split(f"({'|'.join(roles)})" if roles else "$^", text)):
            tokens += [part] if part in self._control_ids else self.sp_model.encode_as_pieces(part)
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        return (
            self._control_ids[token] if token in self._control_ids else int(self.sp_model.piece_to_id(token))
        )

    def _convert_id_to_token(self, index: int) -> str:
        if index in self._control_names:
            return "" if self._format().hides_control_tokens else self._control_names[index]
        if index in self._silent_ids or not 0 <= index < self.sp_model.get_piece_size():
            return ""
        return str(self.sp_model.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to their text; half a character at the end becomes U+FFFD."""
        return str(self.sp_model.decode_pieces(tokens))


def _has_settings(folder: Path) -> bool:
    """Return True if a folder has more than a vocabulary: files that identify the family."""
    return any((folder / name).is_file() for name in ("config.json", "tokenizer_config.json"))
