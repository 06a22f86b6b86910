"""Read vocabulary files; a CheckpointError names the fault of a damaged or foreign one, and its cure."""

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from glmtune.errors import CheckpointError, first_line
from glmtune.families import ICE, VOCABULARY
from glmtune.files import read_bytes, read_json_if_there, read_start, read_text
from glmtune.templates.rounds import CHATGLM_CONTROL_TOKENS

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FOREIGN_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""The errors of transformers and tokenizers for settings of wrong types, besides `Exception` itself."""
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*$")


@contextmanager
def reading_folder(folder: Path) -> Iterator[None]:
    """Check a folder's text files, and turn other libraries' errors over them into CheckpointError.

    For a `with` block that builds a tokenizer from the folder with transformers.
    """
    for name in _SETTINGS:
        read_json_if_there(folder / name)
    for path in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if path.is_file():
            read_text(path)
    try:
        yield
    except Exception as err:
        if not (type(err) is Exception or isinstance(err, _FOREIGN_ERRORS)):  # tokenizers raises the first
            raise
        raise CheckpointError(
            f"{folder / _SETTINGS[0]}: no tokenizer can be made of this and the files beside it: "
            f"{first_line(err)}",
            hint="copy the tokenizer's files from the model's own source",
        ) from err


def read_sentencepiece(path: Path) -> Any:
    """Read the sentencepiece processor of a ChatGLM2/ChatGLM3 vocabulary. Raises CheckpointError."""
    processor, _ = _read_processor(path, "ChatGLM2/ChatGLM3")
    # here alone the 256 byte pieces follow right after <unk>, <s>, </s>, unlike in ChatGLM-6B's and GLM's
    if processor.get_piece_size() < 259 or not processor.is_byte(3):
        raise _wrong_family(path, "another model's sentencepiece vocabulary", "ChatGLM2/ChatGLM3")
    return processor


def read_ice(path: Path) -> tuple[Any, bool]:
    """Read the sentencepiece processor of a ChatGLM-6B vocabulary; return True with it for the late file.

    An earlier file has no control tokens: they are appended, as icetk did, which makes its ids and texts the
    late file's. Raises CheckpointError.
    """
    processor, content = _read_processor(path, "ChatGLM-6B")
    if processor.get_piece_size() < 5 or processor.id_to_piece([3, 4]) != ["<pad>", "<n>"]:
        raise _wrong_family(path, "another model's sentencepiece vocabulary", "ChatGLM-6B")
    if processor.piece_to_id("[gMASK]") != processor.unk_id():
        return processor, True
    return SentencePieceProcessor(model_proto=content + icetk_pieces()), False


def encode_batch(processor: SentencePieceProcessor, texts: list[str]) -> list[NDArray[np.int32]]:
    """Return the ids of each text."""
    # as many threads as torch has, or all processes of `torchrun` would take all cores
    threads = torch.get_num_threads()
    return processor.encode(texts, num_threads=threads, return_type="numpy")  # type: ignore[no-any-return]


def piece_bytes(processor: SentencePieceProcessor, index: int) -> bytes:
    """Return a piece in UTF-8, or the byte that it stands for."""
    piece = str(processor.id_to_piece(index))
    return bytes([int(piece[3:5], 16)]) if processor.is_byte(index) else piece.encode()  # <0xE4>


_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
"""Kinds of pieces. Source: https://github.com/google/sentencepiece src/sentencepiece_model.proto."""


def icetk_pieces() -> bytes:
    """Serialize the pieces that icetk appends to a model: control tokens, white space, and byte fallback."""
    # protobuf: appending a serialized message to another merges them, and joins their repeated fields
    blanks = ("<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81)))
    pieces = [_piece(name, _CONTROL) for name in CHATGLM_CONTROL_TOKENS]
    pieces += [_piece(name, _USER_DEFINED) for name in blanks]
    pieces += [_piece(f"<0x{value:02X}>", _BYTE) for value in range(256)]
    byte_fallback = b"\x12\x03\x98\x02\x01"  # field 35 of the trainer_spec, which is field 2: true
    return b"".join(pieces) + byte_fallback


def _piece(name: str, kind: int) -> bytes:
    """Serialize a piece: field 1 of the model, with its name, a score of 0.0 and its kind."""
    text = name.encode()  # tags: 10 = field 1, bytes; 21 = field 2, float; 24 = field 3, varint
    fields = bytes([10, len(text)]) + text + bytes([21, 0, 0, 0, 0, 24, kind])
    return bytes([10, len(fields)]) + fields


def _read_processor(path: Path, family: str) -> tuple[Any, bytes]:
    """Read a file's sentencepiece processor and its bytes. Raises CheckpointError."""
    if _is_rank_file(_first_bytes(path)):
        raise _wrong_family(path, "a GLM-4 vocabulary (tiktoken ranks)", family)
    try:
        content = read_bytes(path)
        processor = SentencePieceProcessor(model_proto=content)
        processor.id_to_piece(list(range(processor.get_piece_size())))  # raises for a piece that is not UTF-8
        return processor, content
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a sentencepiece model, or a damaged one", hint=_copy_hint(path)
        ) from error


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read the tokens of a GLM-4 vocabulary and their ids. Raises CheckpointError."""
    first = _first_bytes(path)
    if not _is_rank_file(first):
        is_sentencepiece = first.startswith(b"\n") or b"<unk>" in first  # tag of field 1, the first piece
        kind = "a sentencepiece vocabulary" if is_sentencepiece else "not a list of tiktoken ranks"
        raise _wrong_family(path, kind, "GLM-4")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                f"{path}: line {number}: not a token and its rank", hint=_copy_hint(path)
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(
            f"{path}: ranks are missing or doubled: the file is cut off", hint=_copy_hint(path)
        )
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise CheckpointError(
            f"{path}: no token for the byte 0x{missing[0]:02x}: the file is damaged", hint=_copy_hint(path)
        )
    return ranks


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        other = VOCABULARY if path.name == ICE else ICE
        beside = f"; {other} beside it is another family's" if (path.parent / other).is_file() else ""
        raise CheckpointError(f"{path}: the vocabulary file is missing{beside}", hint=_copy_hint(path))
    first = read_start(path)
    if not first:
        raise CheckpointError(f"{path}: the file is empty", hint=_copy_hint(path))
    return first


def _is_rank_file(first: bytes) -> bool:
    return bool(_RANK_LINE.match(first.split(b"\n", 1)[0]))


def _wrong_family(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: {found}, where a {expected} model needs its own", hint=_copy_hint(path))


def _copy_hint(path: Path) -> str:
    return f"copy {path.name} from the model's own source"
