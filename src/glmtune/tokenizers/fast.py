"""The tokenizer of the families in transformers: tokenizer.json, with control tokens among its added tokens.

Facts from https://huggingface.co/THUDM/glm-4-9b-chat-hf tokenizer_config.json and, for the later control
tokens, https://huggingface.co/zai-org/GLM-4.5.
"""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.errors import CheckpointError, ConfigError
from glmtune.families import Identity
from glmtune.files import read_json
from glmtune.templates import find_template
from glmtune.tokenizers.base import ChatTokenizer, name_in_template

FAST_VOCABULARY = "tokenizer.json"
_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""Byte-level BPE writes each byte as a letter."""
_COPY_HINT = f"copy {FAST_VOCABULARY} and tokenizer_config.json from the model's own source"


class FastGlmTokenizer(ChatTokenizer, PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers has no types
    """transformers' fast tokenizer with its chat format.

    In `tokenizer(text)` and `apply_chat_template`, which are transformers' own, a control token spelled in a
    text becomes that token; `encode_plain` never makes one.
    """

    prefix = ("[gMASK]", "<sop>")

    # no __init__ here: transformers 5 builds a class that has one anew, without the file's pre-tokenizer

    def encode_plain(self, text: str) -> list[int]:
        """Encode a text without control tokens: one that the text spells stays text."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Encode texts as `encode_plain` does, each on its own."""
        # tokenizers makes its threads at a process's first batch, as many as this says; else as many as there
        # are cores, in each process of `torchrun`
        os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
        rows = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(row.ids, np.int32) for row in rows]

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of a plain token."""
        letters: str = self._plain.id_to_token(index) or ""
        return bytes(map(_BYTE_OF.__getitem__, letters))

    def control_id(self, name: str) -> int:
        """Return the id of a control token by its official spelling. Raises ConfigError if unknown."""
        index = self.added_tokens_encoder.get(name)
        if index is None:
            known = ", ".join(self.added_tokens_encoder)
            raise ConfigError(f"{name!r} is not a control token of {self.vocab_file}", hint=f"it has {known}")
        return int(index)

    @cached_property
    def _plain(self) -> Tokenizer:
        """Return the same vocabulary without its added tokens."""
        content = json.loads(self.backend_tokenizer.to_str())
        for key in ("post_processor", "truncation", "padding"):  # a saved file may have a length to cut at
            content[key] = None
        return Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))


def read_fast(folder: Path, identity: Identity) -> FastGlmTokenizer:
    """Read a folder's tokenizer. Raises CheckpointError for a missing, damaged or foreign tokenizer.json."""
    path = folder / FAST_VOCABULARY
    if not path.is_file():
        raise CheckpointError(f"{path}: the vocabulary file is missing", hint=_COPY_HINT)
    model = read_json(path).get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{path}: not a byte-pair vocabulary like GLM's", hint=_COPY_HINT)
    tokenizer: FastGlmTokenizer = FastGlmTokenizer.from_pretrained(
        str(folder), template=identity.template, local_files_only=True
    )
    tokenizer.template, tokenizer.vocab_file, tokenizer.padding_side = identity.template, str(path), "left"
    tokenizer.assistant_name = name_in_template(tokenizer.chat_template)
    names = find_template(identity.template).control_tokens if identity.template else tokenizer.prefix
    missing = [name for name in names if name not in tokenizer.added_tokens_encoder]
    # byte-level BPE writes each of the 256 bytes as a letter: with one missing some texts have no ids
    missing += [letter for letter in _BYTE_OF if letter not in tokenizer.vocab]
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: names no eos_token", hint=_COPY_HINT)
    if missing:
        raise CheckpointError(
            f"{path}: no token {missing[0]!r}, which {identity.family} models need", hint=_COPY_HINT
        )
    return tokenizer
