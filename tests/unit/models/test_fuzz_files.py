"""Files of weights, damaged and made to harm: read as they were written, or refused."""

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fuzz import fuzzed
from glmtune.errors import CheckpointError
from glmtune.models.pickles import read_pickle, read_tensors
from glmtune.models.shards import open_shard, read_shard, scan_tensors
from odd_files import FEW, MANY, VALUES, Tally, bounds

CHANGES = st.sampled_from(("flip", "cut", "zero", "put", "double"))
PLACE = st.floats(0, 1, exclude_max=True)
SIZES = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]


def tensors() -> dict[str, Tensor]:
    shared = torch.arange(12.0)
    return {
        "a.weight": torch.arange(24.0).reshape(4, 6),
        "a.bias": torch.ones(4, dtype=torch.float16),
        "b.weight": shared[2:8].reshape(2, 3),
        "c": shared.bfloat16().reshape(3, 4).T,
        "codes": torch.arange(6, dtype=torch.int8),
        "empty": torch.ones(0),
    }


def state() -> dict[str, Any]:
    weight = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(weight.parameters())
    weight(torch.ones(3)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "random": [[torch.get_rng_state()[:40], 1.5, None]],
    }


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def change(content: bytes, kind: str, place: float, value: int) -> bytes:
    """One damage to bytes."""
    held, at = bytearray(content), int(place * len(content))
    if kind == "flip":
        held[at] ^= 1 << value % 8
    elif kind == "cut":
        del held[at:]
    elif kind == "zero":
        held[at : at + value] = bytes(len(held[at : at + value]))
    elif kind == "put":
        held[at] = value
    else:
        held[at:at] = held[at : at + value]
    return bytes(held)


def change_pickle(content: bytes, kind: str, place: float, value: int) -> bytes:
    """The same to the pickle alone, in an archive whose checksums are right again."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for record in old.infolist():
            held = old.read(record)
            is_pickle = record.filename.endswith("data.pkl")
            new.writestr(record.filename, change(held, kind, place, value) if is_pickle else held)
    return file.getvalue()


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("count", SIZES)
def test_a_damaged_bin_file_is_refused_or_gives_what_was_saved(count: int, tmp_path: Path) -> None:
    whole, good, tally, path = tensors(), saved(tensors()), Tally(), tmp_path / "x.bin"

    @fuzzed(count)
    @given(CHANGES, PLACE, st.integers(1, 255), st.booleans())
    def run(kind: str, place: float, value: int, mmap: bool) -> None:
        path.write_bytes(change(good, kind, place, value))
        found = tally.take(lambda: read_tensors(path, mmap=mmap))
        assert found is None or is_same(found, whole)

    with bounds():
        run()
    tally.require(refused=count // 2, read=count // 30)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("content", [tensors, state])
def test_a_changed_pickle_is_read_or_refused(content: Any, count: int, tmp_path: Path) -> None:
    good, tally, path = saved(content()), Tally(), tmp_path / "x.bin"

    @fuzzed(count)
    @given(CHANGES, PLACE, st.integers(1, 255), st.booleans())
    def run(kind: str, place: float, value: int, mmap: bool) -> None:
        path.write_bytes(change_pickle(good, kind, place, value))
        tally.take(lambda: read_pickle(path, mmap=mmap))
        tally.take(lambda: {name: tensor.sum() for name, tensor in open_shard(path)._tensors.items()})

    with bounds():
        run()
    tally.require(refused=count // 2, read=count // 30)


@pytest.mark.parametrize("count", SIZES)
def test_a_damaged_safetensors_file_is_read_or_refused(count: int, tmp_path: Path) -> None:
    path, tally = tmp_path / "x.safetensors", Tally()
    save_file({name: tensor.contiguous() for name, tensor in tensors().items()}, path)
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]

    @fuzzed(count)
    @given(CHANGES, PLACE, st.integers(1, 255), st.booleans())
    def run(kind: str, place: float, value: int, in_header: bool) -> None:
        path.write_bytes(change(good, kind, place * (header / len(good) if in_header else 1), value))
        tally.take(lambda: {name: tensor.sum() for name, tensor in read_shard(path).items()})

    with bounds():
        run()
    tally.require(refused=count // 4, read=count // 30)


@pytest.mark.parametrize("count", SIZES)
def test_an_odd_index_is_read_or_refused(count: int, tmp_path: Path) -> None:
    names, tally = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], Tally()
    held = {"a": torch.ones(2), "b": torch.ones(3)}
    for name, key in zip(names, held, strict=True):
        save_file({key: held[key]}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    paths = st.sampled_from(
        [*names, "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "x" * 300, "..", "", "\ud800"]
    )
    maps = st.dictionaries(st.sampled_from(["a", "b", "c", ""]), paths | VALUES, max_size=3)
    right = st.just(dict(zip(held, names, strict=True)))
    content = st.fixed_dictionaries({"weight_map": right | maps | VALUES}, optional={"metadata": VALUES})

    @fuzzed(count)
    @given(content | VALUES)
    def run(stated: Any) -> None:
        index.write_text(json.dumps(stated), encoding="utf-8")
        tally.take(lambda: scan_tensors(tmp_path))

    with bounds():
        run()
    tally.require(refused=count // 4, read=count // 20)


HARMFUL = {
    "sparse": {"a": torch.eye(3).to_sparse()},
    "meta": {"a": torch.empty(3, device="meta")},
    "quantised": {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)},
    "complex": {"a": torch.ones(3, dtype=torch.complex64)},
    "the key 1 of type int": {1: torch.ones(2)},
    r"shape \[1000000000000\]": {"a": torch.ones(1).expand(10**12)},
    "holds a list, expected a dict": [1],
    "a is a int, expected a tensor": {"a": 1},
    "holds more than tensors, and is not loaded for safety": {"a": {1, 2}},
}


@pytest.mark.parametrize("words", HARMFUL)
def test_what_is_no_dict_of_dense_tensors_is_refused_by_its_kind(words: str, tmp_path: Path) -> None:
    torch.save(HARMFUL[words], tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=words):
        read_shard(tmp_path / "x.bin")


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def doubled(*, times: int) -> bytes:
    """A tuple of two equal tuples of two equal ones, and so on: hashing it takes 2**times steps."""
    return b"X\x01\x00\x00\x00x" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(times))


TEN_TERABYTES = b"\x8a\x06" + (10**13).to_bytes(6, "little")
ALIKE = [n * (2**61 - 1) for n in range(100_000)]  # numbers of one hash
BOMBS = {
    "bytearray": program(b"cbuiltins\nbytearray\n", TEN_TERABYTES, b"\x85R"),
    "storage": program(b"ctorch.storage\nUntypedStorage\n", TEN_TERABYTES, b"\x85R"),
    "itself": program(b"]q\x00h\x00a"),
    "laughs": program(b"]q\x00", b"".join(b"]q%c(%be" % (n + 1, b"h%c" % n * 10) for n in range(30))),
    "key": program(b"}", doubled(times=60), b"K\x01s"),
    "keys": program(b"}(", doubled(times=60), b"K\x01u"),
    "pairs": program(b"ccollections\nOrderedDict\n]", doubled(times=60), b"K\x01\x86a\x85R"),
    "doubled": program(doubled(times=40)),
    "many doubled": program(b"]", doubled(times=20), b"q\x30a", b"h\x30a" * 1000),
    "filled later": program(b"]q\x30q\x31", b"h\x30h\x30\x86q\x30" * 18, b"h\x31(" + b"K\x01" * 1000, b"e"),
    "alike": program(b"}(", b"".join(b"\x8a\x0b%bN" % n.to_bytes(11, "little") for n in ALIKE), b"u"),
    "deep": program(b"]" * 1000 + b"a" * 999),
    "memo": program(b"]r\xff\xff\xff\xff"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("mmap", [True, False])
def test_a_pickle_that_would_fill_the_memory_is_refused(name: str, mmap: bool, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", BOMBS[name])
        archive.writestr("x/version", "3\n")
    with bounds():
        tally = Tally()
        tally.take(lambda: read_pickle(tmp_path / "x.bin", mmap=mmap))
    assert tally.refused or name == "memo"


def test_the_largest_pickle_that_is_read_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", program(b"](", b"N" * 500_000, b"e"))
    with pytest.raises(CheckpointError, match="more than 500,000"):
        read_pickle(tmp_path / "x.bin")


def test_plain_values_of_a_state_are_read_as_they_were(tmp_path: Path) -> None:
    shared = {"lr": 0.1, 5: [True, None]}
    held = {"random": (3, tuple(range(625)), None), "groups": [shared, shared], -1: {}, "": ((), (1,), 2**70)}
    torch.save(held, tmp_path / "x.pt")
    assert read_pickle(tmp_path / "x.pt") == held


@pytest.mark.parametrize("key", [(1, 2), None, 0.5, True, 2**61])
def test_a_key_that_is_neither_text_nor_a_usual_number_is_refused(key: object, tmp_path: Path) -> None:
    torch.save({key: 1}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="as a key, expected text or a number"):
        read_pickle(tmp_path / "x.bin")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_protocol_of_pickle_is_told_with_its_cure(protocol: int, tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "x.bin", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=f"pickle_protocol={protocol}") as told:
        read_tensors(tmp_path / "x.bin")
    assert "without pickle_protocol" in told.value.hint


def test_a_negated_view_is_called_so(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3, dtype=torch.complex64).conj().imag}, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="negated view"):
        read_tensors(tmp_path / "x.bin")


def test_a_storage_cannot_be_larger_than_its_record(tmp_path: Path) -> None:
    """Mapped, its end would be whatever lies behind it in the file."""
    good = saved({"a": torch.arange(8.0)})
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(tmp_path / "x.bin", "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record).replace(b"K\x08", b"K\x09"))
    with pytest.raises(CheckpointError, match="data/0 holds 32 bytes, and its pickle says 36"):
        read_tensors(tmp_path / "x.bin")


def test_compressed_records_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
    with pytest.raises(CheckpointError, match="compressed, which torch"):
        read_pickle(tmp_path / "x.bin")


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    for name in ("x.bin", "x.safetensors"):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_shard(tmp_path / name)
        shutil.rmtree(tmp_path / name)
