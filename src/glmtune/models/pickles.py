"""Files that `torch.save` wrote: plain values and dense tensors, read and nothing run.

A pickle is a program. Its operations are looked at before PyTorch's own restricted reader carries them out:
nothing is called but what rebuilds a dense tensor, and no storage is larger than the record that holds it.
Source: docs.python.org/3/library/pickletools.html; github.com/pytorch/pytorch, torch/serialization.py.
"""

import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import CheckpointError, first_line
from glmtune.files import COPY_AGAIN, read_start, unreadable

_ZIP = b"PK\x03\x04"  # how torch.save files begin since torch 1.6
_MOST_PICKLE_BYTES = (
    32 * 2**20
)  # the tensors of GLM-4.5, 44,000, need 9 MB; their numbers lie in other records
_MOST_VALUES = 10_000_000
_MOST_DEPTH = 64
_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Bytes of one number, by the storages that are read."""
_NAMED = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}" for name in _BYTES),
}
"""All that a pickle may name, as its operation has it: module and name."""
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
"""Tensors that are not read, by a part of the name that rebuilds them."""
_OPERATIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE",
}  # fmt: skip
"""What `torch.save` writes of plain values and tensors."""
_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
_STORAGE = (
    ("MARK",), ("BINUNICODE",), ("GLOBAL",), ("BINUNICODE",), ("BINUNICODE",), _INTEGERS, ("TUPLE",),
)  # fmt: skip
"""The operations that name a storage: the word, its class, its key, its device and how many numbers."""
_KEPT = ("BINUNICODE", "GLOBAL", *_INTEGERS)
"""Those whose value a pickle may take up again."""
_PLAIN = (str, int, float, type(None))  # bool is an int
_DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, ImportError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What Python's and PyTorch's readers raise over bytes that nobody wrote so."""


def read_pickle(path: Path, *, mmap: bool = True, check_crc: bool = True) -> Any:
    """What a `torch.save` file holds: dicts, lists, tuples, plain values and dense tensors, on the CPU.

    `mmap` leaves the tensors in the file; `check_crc` reads every byte once to compare the checksums, those
    of the pickle itself are compared always. Raises CheckpointError for whatever is wrong with the file, and
    for one that holds more than that.
    """
    require_zip(path)
    with _explained(path):
        _look_over(path, check_crc=check_crc)
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    _require_plain(path, content)
    return content


def read_tensors(path: Path, *, mmap: bool = True, check_crc: bool = True) -> dict[str, Tensor]:
    """The dense tensors of a `torch.save` file by name. Raises CheckpointError, as `read_pickle`."""
    content = read_pickle(path, mmap=mmap, check_crc=check_crc)
    if not isinstance(content, Mapping):
        raise _odd(path, f"holds a {type(content).__name__}, expected a dict of tensors")
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise _odd(path, f"has the key {str(name)[:50]} of type {type(name).__name__}, expected names")
        if not isinstance(tensor, Tensor):
            raise _odd(path, f"{name} is a {type(tensor).__name__}, expected a tensor")
    return {name: tensor.detach() for name, tensor in content.items()}


def write_pickle(value: Any, path: Path) -> None:
    """`torch.save`, which makes a RuntimeError of a failing disk. Raises OSError."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as err:
        raise OSError(first_line(err)) from err


def require_zip(path: Path) -> None:
    """Raise CheckpointError for a file that cannot be read, or that no torch since 1.6 has written."""
    start = read_start(path)
    if start and not start.startswith(_ZIP):
        raise CheckpointError(
            f"{path}: damaged, or written by torch before 1.6 (such files cannot be mapped)",
            hint="copy the file again, or load and torch.save it once with a current torch",
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the readers raise into a CheckpointError that names the file, without their advice."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: truncated or damaged: {_reason(error)}", hint=COPY_AGAIN) from None


def _reason(error: BaseException) -> str:
    """Without PyTorch's advice to load files as no file should be loaded."""
    advises = isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error)
    return "its pickle cannot be followed" if advises else first_line(error)


def _odd(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {problem}", hint="re-save the state dict, or get the safetensors files")


def _unsafe(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds more than tensors, and is not loaded for safety: {problem}",
        hint="only weights are ever unpickled; get the safetensors files or re-save the state dict",
    )


# Before it is read


def _look_over(path: Path, *, check_crc: bool) -> None:
    """The archive and the operations of its pickle. Raises CheckpointError, or one of `_DAMAGED`."""
    with zipfile.ZipFile(path) as archive:
        sizes = _list_records(path, archive.infolist())
        folder = next(iter(sizes), "").partition("/")[0]  # as PyTorch takes it
        program = f"{folder}/data.pkl"
        if program not in sizes:
            raise ValueError("it has no data.pkl")
        if sizes[program] > _MOST_PICKLE_BYTES:
            raise _odd(
                path, f"its pickle has {sizes[program]:,} bytes, at most {_MOST_PICKLE_BYTES:,} are read"
            )
        if check_crc and (bad := archive.testzip()):
            raise ValueError(f"{bad} does not match its checksum")
        for key, num_bytes in _follow(path, archive.read(program)):
            held = sizes.get(f"{folder}/data/{key}")
            if held != num_bytes:
                raise ValueError(f"data/{key} holds {held} bytes, and its pickle says {num_bytes}")


def _list_records(path: Path, records: Iterable[zipfile.ZipInfo]) -> dict[str, int]:
    """Bytes of each record; `torch.save` compresses none and writes none twice."""
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


def _follow(path: Path, program: bytes) -> Iterator[tuple[str, int]]:
    """Key and bytes of every storage that a pickle names. Raises as `_look_over` for what is not allowed."""
    memo: dict[Any, Any] = {}
    last: deque[tuple[str, Any]] = deque(maxlen=len(_STORAGE))  # operations, with what they put on the stack
    for operation, value, _ in pickletools.genops(program):
        name = operation.name
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = last[-1]
            continue
        _allow(path, name, value)
        if name == "BINPERSID":
            yield _read_storage([one for one, _ in last], [put for _, put in last])
        if name in ("BINGET", "LONG_BINGET"):
            taken = memo[value]
            last.append(taken if taken[0] in _KEPT else (name, None))
        else:
            last.append((name, value))


def _allow(path: Path, name: str, value: Any) -> None:
    if name in _CALLS or (name == "GLOBAL" and value not in _NAMED):
        kind = next((kind for part, kind in _KINDS.items() if part in str(value)), None)
        if kind:
            raise _odd(path, f"holds a tensor that is {kind}, expected dense ones")
        raise _unsafe(path, f"it names {str(value).replace(' ', '.')[:100]}")
    if name not in _OPERATIONS or (name == "PROTO" and value != 2):
        raise ValueError(f"its pickle has the operation {name} {value if name == 'PROTO' else ''}".rstrip())


def _read_storage(names: list[str], values: list[Any]) -> tuple[str, int]:
    """Key and bytes of the storage that the last operations name."""
    is_known = len(names) == len(_STORAGE) and all(map(tuple.__contains__, _STORAGE, names))
    size = _BYTES.get(str(values[2]).removeprefix("torch ")) if is_known else None
    if size is None or values[1] != "storage":
        raise ValueError("its pickle names a storage in another way than torch.save")
    return values[3], values[5] * size


# Once it is read


def _require_plain(path: Path, content: Any) -> None:
    """Raise CheckpointError for a value that is neither plain nor a dense tensor, or that never ends."""
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > _MOST_DEPTH or seen + len(waiting) > _MOST_VALUES:
            raise _odd(path, "its values lie in one another too deep, or are too many")
        if isinstance(value, Tensor):
            _require_dense(path, value)
        elif isinstance(value, Mapping):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        elif not isinstance(value, _PLAIN):
            raise _unsafe(path, f"it holds a {type(value).__name__}")


def _require_dense(path: Path, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_neg():
        raise _odd(path, f"holds a tensor of layout {tensor.layout} on {tensor.device}, expected dense ones")
    if (
        tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()
    ):  # views that repeat their numbers
        raise _odd(path, f"holds a tensor of shape {list(tensor.shape)}, larger than what is stored of it")
