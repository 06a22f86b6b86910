"""Copies of checkpoints at a URL: whole or none at all, wherever a store fails, whoever wrote there."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from glmtune.errors import CheckpointError, ConfigError, MissingDependencyError, OutputError
from glmtune.files import hash_file
from glmtune.recipe import load_recipe
from glmtune.run_files import list_checkpoints
from glmtune.workflows.copies import MANIFEST, Copy, CopyFolder, renew_copies

KINDS = {"memory": MemoryFileSystem, "file": LocalFileSystem}


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def save(run: Path, step: int, text: str = "") -> Path:
    """A checkpoint as far as copies look at it, in a run that keeps no older one."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes(range(step, 200)))
    (folder / "glmtune.json").write_text(json.dumps({"step": step, "text": text}))
    for name in ("recipe.yaml", "env.json"):
        (run / name).write_text(f"{name} of {run.name}")
    (run / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    return folder


def renew(run: Path, url: str) -> list[Copy]:
    return list(renew_copies(run, url, keep=1, best_step=None))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in folder.iterdir()}


def newest(url: str, run: Path) -> dict[str, str] | None:
    """The files of the newest whole copy; None without any."""
    folder = CopyFolder(url)
    for copy, digests in sorted(folder.manifests().items(), reverse=True):
        try:
            folder.fetch(copy, digests, run)
        except CheckpointError:
            continue
        return contents(run / "checkpoints" / copy.checkpoint)
    return None


class Refused(Exception):
    """An error that is no OSError, as those of botocore and gcsfs."""


def fail_at(patch: pytest.MonkeyPatch, kind: type[fsspec.AbstractFileSystem], number: int) -> None:
    """Let a store fail in the middle of its so manieth change: half of that is made."""
    changes = count(1)

    def breaking(name: str, half: Callable[..., object]) -> None:
        real = getattr(kind, name)

        def change(self: Any, *words: Any, **named: Any) -> object:
            if next(changes) == number:
                half(self, *words, **named)
                raise Refused("no route to host\nand more")
            return real(self, *words, **named)

        patch.setattr(kind, name, change)

    pipe, rm = kind.pipe_file, kind.rm

    def half_put(self: Any, path: str, target: str) -> None:
        content = Path(path).read_bytes()
        pipe(self, target, content[: len(content) // 2])

    def half_rm(self: Any, path: str, *, recursive: bool = False) -> None:
        if recursive:
            rm(self, self.find(path)[0])

    breaking("makedirs", lambda *_, **__: None)
    breaking("put_file", half_put)
    breaking("pipe_file", lambda self, path, value: pipe(self, path, value[: len(value) // 2]))
    breaking("rm", half_rm)


@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize("step", [1, 2], ids=["the same step anew", "a later step"])
def test_a_store_that_fails_anywhere_has_the_old_or_the_new_checkpoint_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protocol: str, step: int
) -> None:
    for number in count(1):
        run = tmp_path / f"run-{number}"
        url = f"{protocol}://{tmp_path}/copies-{number}"
        old = contents(save(run, 1))
        assert renew(run, url) == [Copy(1, 1)]
        new = contents(save(run, step, "anew"))
        with monkeypatch.context() as patch:
            fail_at(patch, KINDS[protocol], number)
            try:
                made = renew(run, url)
            except OutputError as err:
                assert f"{url}: " in str(err)
                assert str(err).endswith("Refused: no route to host")
                made = []
        assert newest(url, tmp_path / f"other-{number}") in (old, new)
        assert contents(list_checkpoints(run)[0]) == new  # the run's own is as it was
        renew(run, url)  # the next time all is well, and nothing is left behind
        [copy] = CopyFolder(url).copies()
        assert copy.step == step
        assert newest(url, tmp_path / f"last-{number}") == new
        if made:
            break
    assert number > 6


def test_a_copy_of_which_any_byte_is_another_is_refused_or_the_same(tmp_path: Path) -> None:
    run, url = tmp_path / "run", "memory://copies"
    saved = contents(save(run, 1))
    renew(run, url)
    names = [name for name in MemoryFileSystem.store if name.startswith("/copies/")]
    assert len(names) == 6
    refused = 0
    for name in names:
        content = MemoryFileSystem.store[name].getvalue()
        for place in range(0, len(content), max(1, len(content) // 40)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            MemoryFileSystem().pipe_file(name, bytes(damaged))
            shutil.rmtree(tmp_path / "other", ignore_errors=True)
            found = newest(url, tmp_path / "other")
            assert found is None or (found == saved and name.endswith(MANIFEST))
            refused += found is None
        MemoryFileSystem().pipe_file(name, content)
    assert refused > 100
    assert newest(url, tmp_path / "other") == saved


@pytest.mark.parametrize(
    "name",
    ["../out", "run/../../out", "/out", "run//out", "a/b", "..", "run/..", "a\\b", "c:out", "a\0",
     "run/checkpoints", "run/best", "run/process.json"],
)  # fmt: skip
def test_a_manifest_cannot_write_outside_the_run(tmp_path: Path, name: str) -> None:
    run, url = tmp_path / "run", "memory://copies"
    save(run, 1)
    renew(run, url)
    path = f"/copies/step-000001-1/{MANIFEST}"
    manifest = json.loads(MemoryFileSystem().cat_file(path))
    MemoryFileSystem().pipe_file(path, json.dumps({**manifest, name: manifest["state.pt"]}).encode())
    assert CopyFolder(url).manifests() == {Copy(1, 1): {}}
    assert newest(url, tmp_path / "other") is None


def test_a_line_that_breaks_off_once_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, url, real, asked = tmp_path / "run", "memory://copies", MemoryFileSystem.get_file, list[str]()
    saved = contents(save(run, 1))
    renew(run, url)

    def get(self: MemoryFileSystem, path: str, target: str) -> None:
        asked.append(path)
        if len(asked) == 1:
            Path(target).write_bytes(self.cat_file(path)[:1])
        elif len(asked) == 3:
            raise FileNotFoundError(path)
        else:
            real(self, path, target)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get)
    assert newest(url, tmp_path / "other") == saved


def test_a_checkpoint_that_is_damaged_here_is_set_aside_for_its_copy(tmp_path: Path) -> None:
    run, url = tmp_path / "run", "memory://copies"
    folder = save(run, 1)
    saved = contents(folder)
    renew(run, url)
    (folder / "state.pt").write_bytes(b"")
    assert newest(url, run) == saved
    assert (run / "checkpoints" / "damaged-step-000001" / "state.pt").read_bytes() == b""


def test_what_is_no_copy_of_ours_is_left_alone(tmp_path: Path) -> None:
    run, url = tmp_path / "run", f"file://{tmp_path}/copies"
    others = [tmp_path / "copies" / name for name in ("notes.txt", "step-000001", "step-000001-1.old/x")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for step in (1, 2):
        save(run, step)
        renew(run, url)
    assert CopyFolder(url).copies() == [Copy(2, 1)]
    assert all(path.read_text() == "mine" for path in others)


def test_kept_are_the_newest_and_the_best_as_in_the_run(tmp_path: Path) -> None:
    run, url = tmp_path / "run", "memory://copies"
    for step in range(1, 6):
        save(run, step)
        list(renew_copies(run, url, keep=2, best_step=min(step, 2)))
    assert [copy.step for copy in CopyFolder(url).copies()] == [2, 4, 5]
    save(run, 3)  # gone back to step 2, and on from there: 4 and 5 are of another life
    list(renew_copies(run, url, keep=2, best_step=2))
    assert [copy.step for copy in CopyFolder(url).copies()] == [2, 3]


def test_without_checkpoints_here_those_there_stay(tmp_path: Path) -> None:
    run, url = tmp_path / "run", "memory://copies"
    save(run, 1)
    renew(run, url)
    shutil.rmtree(run / "checkpoints")
    assert renew(run, url) == []
    assert [copy.step for copy in CopyFolder(url).copies()] == [1]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.core.Store", "err": "Install no_such_package"}
    monkeypatch.setitem(known_implementations, "nosuch", known)
    with pytest.raises(MissingDependencyError, match="this needs no_such_package") as caught:
        CopyFolder("nosuch://bucket/run")
    assert caught.value.hint == "pip install no_such_package"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.copy_to: nosuch://bucket: Protocol not known: nosuch"):
        CopyFolder("nosuch://bucket")


def test_a_folder_that_takes_nothing_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = CopyFolder(f"file://{tmp_path}/file/copies")
    with pytest.raises(OutputError, match="cannot be written: NotADirectoryError"):
        folder.require_writable()
    CopyFolder("memory://copies").require_writable()
    assert not MemoryFileSystem.store


@pytest.mark.parametrize(
    "value", ["runs/copies", "s3:bucket", "s3://", "s3://bucket/*", "file:///a[1]", "://a"]
)
def test_what_is_no_plain_url_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.copy_to: must be a URL"):
        load_recipe({"model": "m"}, [f"train.copy_to={value}"])


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"train\.copy_to: has a password in it") as caught:
        load_recipe({"model": "m"}, ["train.copy_to=ftp://bob:s3cret@host/runs"])
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("value", ["s3://bucket/run", "gs://b", "file:///a b", "simplecache::s3://bucket"])
def test_urls_are_taken(value: str) -> None:
    assert load_recipe({"model": "m"}, [f"train.copy_to={value}"]).train.copy_to == value
