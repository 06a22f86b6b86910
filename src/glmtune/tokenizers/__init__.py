"""Tokenizers of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4, read from the official vocabulary files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, PretrainedConfig

from glmtune.errors import CheckpointError
from glmtune.families import Identity, context_of, identify, in_transformers
from glmtune.files import given_path
from glmtune.folder import ModelFolder
from glmtune.renamed import find_renamed, keyword_renamed
from glmtune.templates import find_template
from glmtune.tokenizers.base import GlmTokenizer
from glmtune.tokenizers.chatglm import ChatGLMTokenizer
from glmtune.tokenizers.fast import FastGlmTokenizer, read_fast
from glmtune.tokenizers.glm4 import ChatGLM4Tokenizer
from glmtune.tokenizers.ice import IceTokenizer
from glmtune.tokenizers.protocol import Tokenizer

__all__ = [
    "TOKENIZERS",
    "ChatGLM4Tokenizer",
    "ChatGLMTokenizer",
    "FastGlmTokenizer",
    "GlmTokenizer",
    "IceTokenizer",
    "check_fits",
    "read_identified_tokenizer",
    "read_tokenizer",
    "register",
]

if not TYPE_CHECKING:
    __getattr__ = partial(find_renamed, __name__)


def _read_slow(kind: type[GlmTokenizer], folder: Path, identity: Identity) -> GlmTokenizer:
    vocab_file = folder / kind.vocab_files_names["vocab_file"]
    # the file by name: without it ChatGLMTokenizer would ask again whose folder this is
    tokenizer: GlmTokenizer = kind.from_pretrained(
        str(folder), vocab_file=str(vocab_file), template=identity.template, local_files_only=True
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[Path, Identity], Any]] = {
    "ChatGLM-6B": partial(_read_slow, IceTokenizer),
    "ChatGLM2/ChatGLM3": partial(_read_slow, ChatGLMTokenizer),
    "GLM-4": partial(_read_slow, ChatGLM4Tokenizer),
    **dict.fromkeys(in_transformers(), read_fast),
}
"""The function that reads the tokenizer of a folder, by the name of its family in `FAMILIES`."""


def read_tokenizer(path: str | Path | ModelFolder, template: str | None = None) -> GlmTokenizer:
    """Read the tokenizer of a model's folder; `template` names the chat format of a folder that lacks it.

    Raises CheckpointError for a missing or foreign vocabulary file, ConfigError for an unfit `template`.
    """
    folder = path if isinstance(path, ModelFolder) else ModelFolder(given_path(path))
    if template is not None:
        find_template(template)  # an unknown name is an error before the folder is read
    return read_identified_tokenizer(folder, identify(folder, template))


def read_identified_tokenizer(folder: ModelFolder, identity: Identity) -> GlmTokenizer:
    """Read the tokenizer of a folder whose identity is known. Raises as `read_tokenizer`."""
    tokenizer: GlmTokenizer = TOKENIZERS[identity.family](folder.path, identity)
    tokenizer.context = context_of(folder)
    return tokenizer


@keyword_renamed("place", "where")
def check_fits(
    tokenizer: Tokenizer,
    padded_vocab_size: int,
    eos_token_id: int | Sequence[int] | None = None,
    *,
    where: str = "model",
) -> None:
    """Raise CheckpointError for a tokenizer of another family than the model's.

    Compares the vocabulary size with the model's embedding rows, and the eos id with the config's eos ids.
    """
    size, problem = len(tokenizer), ""
    eos_ids = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    if size > padded_vocab_size:
        problem = f"has {size:,} tokens, but the model only {padded_vocab_size:,} rows"
    elif padded_vocab_size > 2 * max(size, 1024):  # padding to a multiple never doubles a vocabulary
        problem = f"has {size:,} tokens, but the model has {padded_vocab_size:,} rows"
    elif eos_ids and tokenizer.end_id not in eos_ids:
        problem = f"ends a text with id {tokenizer.end_id}, but the model with {sorted(eos_ids)}"
    if problem:
        raise CheckpointError(
            f"{tokenizer.vocab_file}: this vocabulary {problem} ({where})",
            hint="copy the tokenizer's files from the model's own source",
        )


# keys for AutoTokenizer's table: the tokenizer class itself is found by the name in tokenizer_config.json
class _ChatGLMFolder(PretrainedConfig): ...  # type: ignore[misc]  # transformers has no types


class _ChatGLM4Folder(PretrainedConfig): ...  # type: ignore[misc]


def register() -> None:
    """Register the classes, so that `AutoTokenizer` reads official folders without remote code."""
    AutoTokenizer.register(_ChatGLMFolder, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)
    AutoTokenizer.register(_ChatGLM4Folder, slow_tokenizer_class=ChatGLM4Tokenizer, exist_ok=True)
