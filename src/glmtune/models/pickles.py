"""Read `torch.save` files safely: plain values and dense tensors, without running any code in them.

A pickle is a program. Its operations are checked before PyTorch's own restricted reader carries them out: the
only calls allowed rebuild dense tensors, and no storage may be larger than the record that holds it.
Source: docs.python.org/3/library/pickletools.html; github.com/pytorch/pytorch, torch/serialization.py.
"""

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError, first_line
from glmtune.files import COPY_AGAIN, read_start, unreadable

_ZIP = b"PK\x03\x04"  # how torch.save files begin since torch 1.6
_MOST_PICKLE_BYTES = 32 * 2**20  # the numbers of the tensors lie in other records
_MOST_VALUES = 500_000
"""The most operations of a pickle, and the most values in its result, a shared value counted each time.

Enough for 15,000 tensors; the 44,000 of GLM-4.5 are published in 93 files, none of them a pickle.
"""
_MOST_DEPTH = 64  # of values in one another
_BYTES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
"""Bytes of a number, by the storage classes that are allowed."""
_KINDS = {
    "sparse": "sparse",
    "meta": "meta (it has no numbers)",
    "qtensor": "quantised by PyTorch",
    "nested": "nested",
    "tensor_v3": "float8, or of another type that no model here is held in",
    "Complex": "complex",
    "QInt": "quantised by PyTorch",
    "QUInt": "quantised by PyTorch",
}
"""Kinds of tensors that are refused, by a part of the name of the function that rebuilds them."""
_LEAVES = {
    "GLOBAL": "global", "BINUNICODE": "text", "BINFLOAT": "other", "NONE": "other", "NEWFALSE": "other",
    "NEWTRUE": "other", "EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict",
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), "number"),
}  # fmt: skip
"""Operations that put a new value on the stack, and its kind."""
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""Operations that make a tuple, and the number of its values; None: all since the mark."""
_FILLS = {
    "APPEND": ("list", 1), "APPENDS": ("list", None), "SETITEM": ("dict", 2), "SETITEMS": ("dict", None),
    "BUILD": ("dict", 1),
}  # fmt: skip
"""Operations that fill a container, its kind, and the number of values put in; None: all since the mark."""
_OPERATIONS = {
    *_LEAVES, *_TUPLES, *_FILLS, "PROTO", "STOP", "MARK", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET",
}  # fmt: skip
"""The operations that `torch.save` writes for plain values and tensors."""
_NEWER = range(3, pickle.HIGHEST_PROTOCOL + 1)  # protocols after 2, which PyTorch writes
_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}  # name or run code
_CALLED = {
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "tensor",
}
"""The functions that may be called, and the kind of their result."""
_STORAGE = ("text", "global", "text", "text", "number")
"""Kinds in the tuple that names a storage: the word "storage", its class, its key, its device, its length."""
_LARGEST_KEY = 2**60
"""The limit of numbers as keys: smaller ones are their own hash, larger ones can be made to collide."""
_PLAIN = (str, int, float, type(None))  # bool is an int
_DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""The errors that Python's and PyTorch's readers raise over damaged bytes."""


def read_pickle(path: Path, *, mmap: bool = True, check_crc: bool = True) -> Any:
    """Read a `torch.save` file: dicts, lists, tuples, plain values and dense tensors, on the CPU.

    `mmap` leaves the tensors in the file. `check_crc` reads every byte once to compare all checksums; the
    pickle's own checksum is compared in any case. Raises CheckpointError for a damaged or unreadable file,
    and for any other kind of value in it.
    """
    require_zip(path)
    with _explained(path):
        _check_archive(path, check_crc=check_crc)  # before torch.load, which carries the operations out
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    _require_plain(path, content)
    return content


def read_tensors(path: Path, *, mmap: bool = True, check_crc: bool = True) -> dict[str, Tensor]:
    """Read the dense tensors of a `torch.save` file by name. Raises CheckpointError, as `read_pickle`."""
    content = read_pickle(path, mmap=mmap, check_crc=check_crc)
    if not isinstance(content, Mapping):
        raise _odd(path, f"holds a {type(content).__name__}, expected a dict of tensors")
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise _odd(path, f"has the key {str(name)[:50]} of type {type(name).__name__}, expected names")
        if not isinstance(tensor, Tensor):
            raise _odd(path, f"{name} is a {type(tensor).__name__}, expected a tensor")
    return {name: tensor.detach() for name, tensor in content.items()}


def write_pickle(value: object, path: Path) -> None:
    """Write a file with `torch.save`. Raises OSError."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as err:  # torch turns a full or failing disk into this
        # of two errors the second: that the end of the file is not where it should be
        raise err.__context__ if isinstance(err.__context__, OSError) else OSError(first_line(err)) from err


def require_zip(path: Path) -> None:
    """Raise CheckpointError for an unreadable file, or no zip archive, as torch has written since 1.6."""
    start = read_start(path)
    if start and not start.startswith(_ZIP):
        raise CheckpointError(
            f"{path}: damaged, or written by torch before 1.6 (such files cannot be mapped)",
            hint="copy the file again, or load and torch.save it once with a current torch",
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the readers' errors into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except _DAMAGED as error:
        # PyTorch advises to load without weights_only, which no file should ever be
        is_advice = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
        reason = "its pickle cannot be followed" if is_advice else first_line(error)
        raise CheckpointError(f"{path}: truncated or damaged: {reason}", hint=COPY_AGAIN) from None


def _odd(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {problem}", hint="re-save the state dict, or get the safetensors files")


def _unsafe(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds more than tensors, and is not loaded for safety: {problem}",
        hint="only weights are ever unpickled; get the safetensors files or re-save the state dict",
    )


# Before the file is loaded


def _check_archive(path: Path, *, check_crc: bool) -> None:
    """Check the records of the archive and the operations of its pickle, without carrying them out.

    Raises CheckpointError for content that is not allowed, or one of `_DAMAGED`.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = _list_records(path, archive.infolist())
        folder = next(iter(sizes), "").partition("/")[0]  # PyTorch too takes the first record's folder
        program = f"{folder}/data.pkl"
        if program not in sizes:
            raise ValueError("it has no data.pkl")
        if sizes[program] > _MOST_PICKLE_BYTES:
            raise _odd(
                path, f"its pickle has {sizes[program]:,} bytes, at most {_MOST_PICKLE_BYTES:,} are read"
            )
        if check_crc and (bad := archive.testzip()):
            raise ValueError(f"{bad} does not match its checksum")
        machine = _Machine(path)
        for number, (operation, value, _) in enumerate(pickletools.genops(archive.read(program))):
            if number > _MOST_VALUES:
                raise _odd(path, f"its pickle has more than {_MOST_VALUES:,} operations")
            _allow(path, operation.name, value)
            if operation.name != "BINPERSID":
                machine.take(operation.name, value)
                continue
            # torch.load allocates by the pickle's length: compare it with the record that is there
            key, num_bytes = machine.name_storage()
            held = sizes.get(f"{folder}/data/{key}")
            if held != num_bytes:
                raise ValueError(f"data/{key} holds {held} bytes, and its pickle says {num_bytes}")


def _list_records(path: Path, records: Iterable[zipfile.ZipInfo]) -> dict[str, int]:
    """Return the bytes of each record; refuse compressed or doubled ones, which torch never writes."""
    sizes: dict[str, int] = {}
    folded: set[str] = set()  # PyTorch finds a record by its name in either case
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise _odd(path, f"{record.filename} is compressed, which torch.save never does")
        if record.filename.casefold() in folded:
            raise ValueError(f"{record.filename} is in it twice")
        folded.add(record.filename.casefold())
        sizes[record.filename] = record.file_size
    return sizes


@dataclass(slots=True)
class _Value:
    """A value on the pickle's stack: its kind and its size, instead of the value itself."""

    kind: str
    value: Any = None
    size: int = 1
    """Number of values, this one and all inside it."""
    is_part: bool = False
    """True once it lies in another value: nothing more may be put into it, or its size there were wrong."""


class _Machine:
    """A pickle machine that tracks kinds and sizes of values alone. Raises as `_check_archive`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[_Value] = []
        self._below: list[list[_Value]] = []  # the stack under each mark
        self._memo: dict[int, _Value] = {}

    def take(self, name: str, value: Any) -> None:  # Any: pickletools' argument of an operation
        """Carry out an operation other than BINPERSID."""
        if name in _LEAVES:
            self._stack.append(_Value(_LEAVES[name], value))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[value])
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name in _TUPLES:
            parts = self._since(_TUPLES[name])
            self._stack.append(_Value("tuple", parts, self._count(parts, 1)))
        elif name == "REDUCE":
            called, arguments = self._since(2)
            kind = _CALLED.get(called.value) if called.kind == "global" else None
            if kind is None or arguments.kind != "tuple" or (kind == "dict" and arguments.size > 1):
                raise _otherwise("makes a value")
            self._stack.append(_Value(kind, size=self._count([arguments], 1)))
        elif name in _FILLS:
            self._fill(name)

    def name_storage(self) -> tuple[str, int]:
        """Replace the tuple on the stack by the storage it names; return the storage's key and bytes."""
        named = self._stack.pop()
        parts: list[_Value] = named.value or [] if named.kind == "tuple" else []
        if tuple(part.kind for part in parts) != _STORAGE:
            raise _otherwise("names a storage")
        word, kind, key, _, count = (part.value for part in parts)
        if word != "storage" or kind not in _BYTES:
            raise _otherwise("names a storage")
        self._stack.append(_Value("storage"))
        return key, count * _BYTES[kind]

    def _since(self, count: int | None) -> list[_Value]:
        """Take `count` values off the stack, in order; None: all since the last mark."""
        if count is None:
            parts, self._stack = self._stack, self._below.pop()
            return parts
        return [self._stack.pop() for _ in range(count)][::-1]

    def _count(self, parts: Iterable[_Value], size: int) -> int:
        """Mark values as parts of another, and return its size: `size` plus theirs."""
        for part in parts:
            part.is_part = True
            size += part.size
        if size > _MOST_VALUES:
            raise _odd(self._path, f"holds more than {_MOST_VALUES:,} values, a shared one counted each time")
        return size

    def _fill(self, name: str) -> None:
        """Put values into the container below them on the stack."""
        kind, count = _FILLS[name]
        parts = self._since(count)
        target = self._stack[-1]
        if target.kind != kind or target.is_part or any(part is target for part in parts):
            raise _otherwise("fills a value")
        for key in parts[::2] if name.startswith("SET") else ():
            if key.kind != "text" and (key.kind != "number" or abs(key.value) >= _LARGEST_KEY):
                raise _odd(self._path, f"has a {key.kind} as a key, expected text or a number below 2**60")
        target.size = self._count(parts, target.size)


def _otherwise(does: str) -> ValueError:
    return ValueError(f"its pickle {does} in another way than torch.save")


def _allow(path: Path, name: str, value: object) -> None:
    """Raise CheckpointError for an operation that names code or a kind of tensor that is not read."""
    if name in _CALLS or (name == "GLOBAL" and value not in _CALLED and value not in _BYTES):
        kind = next((kind for part, kind in _KINDS.items() if part in str(value)), None)
        if kind:
            raise _odd(path, f"holds a tensor that is {kind}, expected dense ones")
        raise _unsafe(path, f"it names {str(value).replace(' ', '.')[:100]}")
    if name == "PROTO" and value in _NEWER:
        raise CheckpointError(
            f"{path}: saved with pickle_protocol={value}, and only PyTorch's own, 2, is read safely",
            hint="save it again without pickle_protocol where it was made, or get the safetensors files",
        )
    if name not in _OPERATIONS or (name == "PROTO" and value != 2):
        raise ValueError(f"its pickle has the operation {name} {value if name == 'PROTO' else ''}".rstrip())


# Once the file is loaded


def _require_plain(path: Path, content: object) -> None:
    """Raise CheckpointError for a value that is neither plain nor a dense tensor, or that contains itself."""
    waiting = [(content, 0)]  # no recursion: the values may lie deeper than Python's stack
    while waiting:
        value, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise _odd(path, f"its values lie in one another more than {_MOST_DEPTH} deep")
        if isinstance(value, Mapping):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        elif not isinstance(value, Tensor):
            if not isinstance(value, _PLAIN):
                raise _unsafe(path, f"it holds a {type(value).__name__}")
        elif value.is_neg():
            raise _odd(path, "holds a negated view of a tensor, expected its own numbers (resolve_neg)")
        elif value.layout != torch.strided or value.device.type != "cpu":
            kind = f"layout {value.layout} on {value.device}"
            raise _odd(path, f"holds a tensor of {kind}, expected dense ones")
        elif value.numel() * value.itemsize > value.untyped_storage().nbytes():
            # a view with stride 0 repeats its numbers: a few bytes may claim to be terabytes
            raise _odd(path, f"holds a tensor of shape {list(value.shape)}, larger than what is stored of it")
