"""Writing files so that nothing is lost."""

import os
import re
from pathlib import Path

import pytest

from glmtune.errors import CheckpointError, ConfigError, OutputError
from glmtune.run_files import (
    append_json,
    cannot_write,
    find_checkpoint,
    follow,
    link,
    read_json_lines,
    replacing,
    require_new,
    write_json,
    write_text,
)


def full_disk(*_args: object, **_kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match=r"a\.json: cannot be written: No space left on device"):
        write_json(path, {"new": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "old" in path.read_text(encoding="utf-8")


def test_the_longest_name_there_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("名" * 85)
    write_json(path, {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "step"
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.mkdir()
        (partial / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with replacing(path) as partial:
        partial.mkdir()
        (partial / "whole").touch()
    assert [p.name for p in path.iterdir()] == ["whole"]


def test_others_may_read_weights_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "step-000001") as partial:
            partial.mkdir()
            (partial / "other.json").touch()
            (weights := partial / "model.safetensors").touch()
            weights.chmod(0o600)  # as safetensors makes them
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-000001").iterdir()}
    assert modes == {"other.json": 0o640, "model.safetensors": 0o640}


def test_a_half_written_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json(path, {"step": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]


def test_a_link_moves_to_another_target(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_text(tmp_path / name / "name", name)
        link(tmp_path / "best", tmp_path / name)
        assert (tmp_path / "best" / "name").read_text(encoding="utf-8") == name
    assert (tmp_path / "best").readlink() == Path("two")


def test_where_links_are_forbidden_a_file_points_at_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link(tmp_path / "best", tmp_path / name)
        assert not (tmp_path / "best").is_symlink()
        assert follow(tmp_path / "best") == tmp_path / name


def test_what_is_no_link_stays_where_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "notes", "some text")
    for path in (tmp_path, tmp_path / "notes", tmp_path / "missing"):
        assert follow(path) == path


@pytest.mark.parametrize("content", ["x" * 600, "\0", "nowhere", "best"])
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, content: str) -> None:
    write_text(tmp_path / "best", content)
    with pytest.raises(CheckpointError, match="best: leads to no checkpoint"):
        find_checkpoint(tmp_path, "best")


def test_a_link_to_itself_is_told(tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to("best")
    with pytest.raises(CheckpointError, match="best: leads to no checkpoint"):
        find_checkpoint(tmp_path, "best")


def test_a_folder_with_something_in_it_is_not_taken(tmp_path: Path) -> None:
    require_new(tmp_path / "free", hint="")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="not empty and will not be overwritten"):
        require_new(tmp_path, hint="")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"file is a file, not a folder"):
            require_new(path, hint="")


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(number: int) -> None:
        inode = os.fstat(number).st_ino
        done.extend(path.name for path in [tmp_path, *tmp_path.rglob("*")] if path.stat().st_ino == inode)
        sync(number)

    def renamed(self: Path, target: Path) -> Path:
        done.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with replacing(tmp_path / "checkpoint", is_durable=True) as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "state").write_text("1")
        (partial / "inner" / "more").write_text("2")
    named = done.index("renamed")
    assert set(done[:named]) == {"state", "more", "inner", partial.name}
    assert done[named - 1] == partial.name  # the folder after what is in it
    assert done[named + 1 :] == [tmp_path.name]


def test_of_a_full_disk_it_is_told_how_much_is_free_and_missing(tmp_path: Path) -> None:
    error = cannot_write(tmp_path / "none" / "a", OSError(28, "No space left on device"), num_bytes=10**15)
    assert re.search(r"No space left on device; .*B are free there, and it takes .*GB: .*more", str(error))
    told_in_words = OSError("[enforce fail at inline_container.cc:664] . No space left on device")
    assert "are free there" in str(cannot_write(tmp_path / "a", told_in_words))
    assert "free there" not in str(cannot_write(tmp_path / "a", OSError(13, "Permission denied")))
