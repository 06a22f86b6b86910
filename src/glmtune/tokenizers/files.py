"""Read vocabulary files, and say clearly what is wrong with one that is not what it should be."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from glmtune.errors import CheckpointError
from glmtune.files import read_start, unreadable

VOCABULARY = "tokenizer.model"
_COPY_HINT = "copy tokenizer.model from the model's own source"
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*$")


def read_sentencepiece(path: Path) -> Any:
    """The sentencepiece processor of a ChatGLM2/ChatGLM3 vocabulary. Raises CheckpointError."""
    if _is_rank_file(_first_bytes(path)):
        raise _wrong_family(path, "a GLM-4 vocabulary (tiktoken ranks)", "ChatGLM2/ChatGLM3")
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: not a sentencepiece model, or a damaged one", hint=_COPY_HINT
        ) from error
    # ChatGLM2's and 3's has its 256 byte pieces right after <unk>, <s>, </s>; ChatGLM-6B's and GLM's do not
    if processor.get_piece_size() < 259 or not processor.is_byte(3):
        raise _wrong_family(path, "another model's sentencepiece vocabulary", "ChatGLM2/ChatGLM3")
    return processor


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a GLM-4 vocabulary and their ids. Raises CheckpointError."""
    first = _first_bytes(path)
    if not _is_rank_file(first):
        is_sentencepiece = first.startswith(b"\n") or b"<unk>" in first
        what = "a sentencepiece vocabulary" if is_sentencepiece else "not a list of tiktoken ranks"
        raise _wrong_family(path, what, "GLM-4")
    ranks: dict[bytes, int] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{path}: line {number}: not a token and its rank", hint=_COPY_HINT
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path}: ranks are missing or doubled: the file is cut off", hint=_COPY_HINT)
    return ranks


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        beside = path.parent / "ice_text.model"
        if beside.is_file():
            raise CheckpointError(
                f"{beside}: the vocabulary of ChatGLM-6B (first version), which is not supported yet",
                hint="a ChatGLM2, ChatGLM3 or GLM-4 folder has a tokenizer.model",
            )
        raise CheckpointError(f"{path}: the vocabulary file is missing", hint=_COPY_HINT)
    first = read_start(path)
    if not first:
        raise CheckpointError(f"{path}: the file is empty", hint=_COPY_HINT)
    return first


def _is_rank_file(first: bytes) -> bool:
    return bool(_RANK_LINE.match(first.split(b"\n", 1)[0]))


def _wrong_family(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: {found}, where a {expected} model needs its own", hint=_COPY_HINT)
