"""Read vocabulary files, and say clearly what is wrong with one that is not what it should be."""

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from glmtune.errors import CheckpointError, first_line
from glmtune.families import ICE, VOCABULARY
from glmtune.files import read_bytes, read_json_if_there, read_start, read_text
from glmtune.templates.rounds import CHATGLM_CONTROL_TOKENS

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FOREIGN_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What transformers and tokenizers raise for settings of wrong types, besides `Exception` itself."""
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*$")


@contextmanager
def reading_folder(folder: Path) -> Iterator[None]:
    """Inside, a tokenizer is made of a folder's files by other packages.

    Raises CheckpointError for a file that is damaged, and for settings that they cannot read.
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
    """The sentencepiece processor of a ChatGLM2/ChatGLM3 vocabulary. Raises CheckpointError."""
    processor, _ = _read_processor(path, "ChatGLM2/ChatGLM3")
    # ChatGLM2's and 3's has its 256 byte pieces right after <unk>, <s>, </s>; ChatGLM-6B's and GLM's do not
    if processor.get_piece_size() < 259 or not processor.is_byte(3):
        raise _wrong_family(path, "another model's sentencepiece vocabulary", "ChatGLM2/ChatGLM3")
    return processor


def read_ice(path: Path) -> tuple[Any, bool]:
    """The sentencepiece processor of a ChatGLM-6B vocabulary, and whether its file has the control tokens.

    Where it has none they are appended, as icetk did: ids and texts are then those of the later file.
    Raises CheckpointError.
    """
    processor, content = _read_processor(path, "ChatGLM-6B")
    if processor.get_piece_size() < 5 or processor.id_to_piece([3, 4]) != ["<pad>", "<n>"]:
        raise _wrong_family(path, "another model's sentencepiece vocabulary", "ChatGLM-6B")
    if processor.piece_to_id("[gMASK]") != processor.unk_id():
        return processor, True
    return SentencePieceProcessor(model_proto=content + icetk_pieces()), False


_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
"""Kinds of pieces. Source: https://github.com/google/sentencepiece src/sentencepiece_model.proto."""


def icetk_pieces() -> bytes:
    """What icetk appends to a model: control tokens, white space, bytes, and the use of the bytes.

    Serialized messages that follow each other are one message, their repeated fields joined.
    """
    blanks = ("<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81)))
    pieces = [_piece(name, _CONTROL) for name in CHATGLM_CONTROL_TOKENS]
    pieces += [_piece(name, _USER_DEFINED) for name in blanks]
    pieces += [_piece(f"<0x{value:02X}>", _BYTE) for value in range(256)]
    byte_fallback = b"\x12\x03\x98\x02\x01"  # field 35 of the trainer_spec, which is field 2: true
    return b"".join(pieces) + byte_fallback


def _piece(name: str, kind: int) -> bytes:
    """A serialized piece: field 1 of the model, with its name, a score of 0.0 and its kind."""
    text = name.encode()
    fields = bytes([10, len(text)]) + text + bytes([21, 0, 0, 0, 0, 24, kind])
    return bytes([10, len(fields)]) + fields


def _read_processor(path: Path, family: str) -> tuple[Any, bytes]:
    """A file's sentencepiece processor and its bytes. Raises CheckpointError."""
    if _is_rank_file(_first_bytes(path)):
        raise _wrong_family(path, "a GLM-4 vocabulary (tiktoken ranks)", family)
    try:
        content = read_bytes(path)
        processor = SentencePieceProcessor(model_proto=content)
        processor.id_to_piece(list(range(processor.get_piece_size())))  # each piece is text
        return processor, content
    except (RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a sentencepiece model, or a damaged one", hint=_copy_hint(path)
        ) from error


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a GLM-4 vocabulary and their ids. Raises CheckpointError."""
    first = _first_bytes(path)
    if not _is_rank_file(first):
        is_sentencepiece = first.startswith(b"\n") or b"<unk>" in first
        what = "a sentencepiece vocabulary" if is_sentencepiece else "not a list of tiktoken ranks"
        raise _wrong_family(path, what, "GLM-4")
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
