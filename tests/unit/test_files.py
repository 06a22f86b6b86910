"""What stands at a path where a file is expected."""

import os
import socket
from pathlib import Path

import pytest

from glmtune.errors import CheckpointError
from glmtune.files import MOST_BYTES, open_file, read_bytes, read_json_if_there, read_start, read_text


@pytest.fixture(params=["pipe", "device", "socket", "link to a pipe"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    if request.param == "device":
        return Path(os.devnull)
    if request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    return path


@pytest.mark.parametrize("read", [read_bytes, read_start, read_text, read_json_if_there])
def test_what_is_no_file_is_refused_and_never_waited_for(odd: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(CheckpointError, match=r"is a (named pipe|device|socket), not a file") as refused:
        read(odd)
    assert refused.value.hint == "save what it gives to a file, and name that"


def test_the_end_of_a_pipe_is_no_file() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match="named pipe"):
            open_file(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
        os.close(writing)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    for read in (read_bytes, read_start, read_json_if_there):
        with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
            read(tmp_path)


def test_a_file_of_too_many_bytes_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # a sparse file: it takes no room
    with pytest.raises(CheckpointError, match=f"holds 10,000,000,000 bytes, at most {MOST_BYTES:,} are read"):
        read_bytes(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(CheckpointError, match="at most 4 are read"):
        read_bytes(path, 4)
