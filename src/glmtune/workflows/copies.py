"""Copies of a run's checkpoints in a folder at a URL, such as s3://bucket/runs/first. Loads no torch.

A store of objects cannot rename, so no copy gets its name at the end: each is written into a folder of its
own, `step-000100-1`, and last of all its manifest, the SHA-256 of its files by name. Until that is there the
folder is no copy, whatever it holds; what the new one replaces is removed only then.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from glmtune.adapters.card import CARD_FILE
from glmtune.errors import (
    CheckpointError,
    ConfigError,
    GlmtuneError,
    MissingDependencyError,
    OutputError,
    first_line,
)
from glmtune.extras import require
from glmtune.files import hash_file
from glmtune.run_files import (
    DATA_FILE,
    ENVIRONMENT_FILE,
    LOG_FILE,
    MEMORY_FILE,
    METRICS_FILE,
    PROCESS_FILE,
    RANKS_FILE,
    RECIPE_FILE,
    REPLAY_FILE,
    SAMPLES_FILE,
    list_checkpoints,
    make_folder,
    replacing,
    set_aside,
    step_of,
    steps_to_keep,
)

MANIFEST = "manifest.json"
RUN = "run/"
"""Start of the names of `RUN_FILES` in a copy, whose other files are the checkpoint's own."""
RUN_FILES = (
    RECIPE_FILE, ENVIRONMENT_FILE, METRICS_FILE, SAMPLES_FILE, RANKS_FILE, MEMORY_FILE, DATA_FILE,
    REPLAY_FILE,
)  # fmt: skip
"""Files of a run's folder that it needs to go on, so that a copy has them too."""

_OLDER = "an older copy is gone on with; without one, train anew"
_FOLDER = re.compile(r"step-(\d{6,})-(\d+)")
_FILE = re.compile(rf"{RUN}(?:{'|'.join(map(re.escape, RUN_FILES))})|[^/\\:\0]*[^/\\:.\0][^/\\:\0]*")
"""Names of files in a copy: the run's that are known, and a checkpoint's in no folder but its own, whoever
wrote the manifest."""
_TRIES = 2
"""Times that a file is fetched before it counts as damaged: a line may break off in the middle of it."""


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """The folder of a copy of a checkpoint, finished or not."""

    step: int
    number: int
    """Of the copies of that step, from 1."""

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint's folder in a run."""
        return f"step-{self.step:06d}"

    def __str__(self) -> str:
        """Return the name of the copy's folder."""
        return f"{self.checkpoint}-{self.number}"


class CopyFolder:
    """The folder at a URL that has the copies of one run."""

    def __init__(self, url: str) -> None:
        """Open it with fsspec; it need not be there.

        Raises `ConfigError` for a protocol that fsspec does not know, `MissingDependencyError` without the
        protocol's package.
        """
        self.url = url.rstrip("/")
        fsspec = require("fsspec", extra="fsspec")
        with self._explained("cannot be opened"):
            try:
                self._fs, root = fsspec.url_to_fs(self.url)
            except ImportError as err:
                missing = err.__cause__ if isinstance(err.__cause__, ImportError) else err
                raise MissingDependencyError(
                    f"train.copy_to: {url}: this needs {missing.name}", hint=f"pip install {missing.name}"
                ) from None
            except ValueError as err:
                raise ConfigError(
                    f"train.copy_to: {url}: {first_line(err)}",
                    hint="s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER or another one of fsspec's",
                ) from None
        self._root = root.rstrip("/")

    @contextmanager
    def _explained(self, problem: str) -> Iterator[None]:
        """Turn whatever a protocol's package raises into an `OutputError`."""
        try:
            yield
        except GlmtuneError:
            raise
        except Exception as err:  # each package has errors of its own, not all an OSError
            raise OutputError(
                f"{self.url}: {problem}: {type(err).__name__}: {first_line(err)}",
                hint="check the address, the rights there and the network; the protocol's package reads "
                "credentials where it always does",
            ) from err

    def copies(self) -> list[Copy]:
        """List the copies, finished or not, by step and number. Raises `OutputError`."""
        with self._explained("cannot be listed"):
            self._fs.invalidate_cache()  # another machine may have written there
            try:
                paths = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        found = (_FOLDER.fullmatch(path.rstrip("/").rpartition("/")[2]) for path in paths)
        return sorted(Copy(int(match[1]), int(match[2])) for match in found if match)

    def manifests(self) -> dict[Copy, dict[str, str]]:
        """Return the manifest of each copy, as `copies` has them; empty for an unfinished or damaged one.

        Raises `OutputError`.
        """
        read: dict[Copy, dict[str, str]] = {}
        for copy in self.copies():
            read[copy] = {}
            with self._explained(f"{copy}/{MANIFEST} cannot be read"):
                try:
                    content = json.loads(self._fs.cat_file(f"{self._root}/{copy}/{MANIFEST}"))
                except (FileNotFoundError, ValueError):  # of broken JSON or UTF-8
                    continue
            names = content if isinstance(content, dict) and CARD_FILE in content else ()
            if names and all(isinstance(content[name], str) and _FILE.fullmatch(name) for name in names):
                read[copy] = content
        return read

    def write(self, step: int, files: Mapping[str, Path]) -> Copy:
        """Write a copy of these files, each under its name. Raises `OutputError`; then it is none."""
        numbers = [copy.number for copy in self.copies() if copy.step == step]
        copy = Copy(step, max(numbers, default=0) + 1)
        digests = {name: hash_file(path) for name, path in files.items()}
        folder = f"{self._root}/{copy}"
        with self._explained(f"{copy} cannot be written"):
            self._fs.makedirs(f"{folder}/{RUN.rstrip('/')}", exist_ok=True)
            for name, path in files.items():
                self._fs.put_file(str(path), f"{folder}/{name}")
            self._fs.pipe_file(f"{folder}/{MANIFEST}", json.dumps(digests, indent=2).encode())
        return copy

    def write_results(self, run: Path) -> list[str]:
        """Copy the files of a finished run's folder, to be looked at; return their names.

        They lie beside the copies of checkpoints, and nothing goes on from them. Raises `OutputError`.
        """
        growing = (PROCESS_FILE, LOG_FILE)
        names = [path.name for path in sorted(run.iterdir()) if path.is_file() and path.name not in growing]
        for name in names:
            with self._explained(f"{name} cannot be written"):
                self._fs.put_file(str(run / name), f"{self._root}/{name}")
        return names

    def fetch(self, copy: Copy, digests: Mapping[str, str], run: Path) -> None:
        """Fetch files of a copy into a run's folder: the checkpoint, and the run's own in place of those.

        `digests`: its manifest, or a part of it. A checkpoint of the same step there is set aside. Raises
        `CheckpointError` if a file is not as it was written, and `OutputError`; the checkpoints in the folder
        are as before then.
        """
        path = run / "checkpoints" / copy.checkpoint
        if not digests:
            raise CheckpointError(
                f"{self.url}/{copy}/{MANIFEST}: is missing or damaged: it may never have been finished",
                hint=_OLDER,
            )
        make_folder(path.parent)
        with replacing(path, is_durable=True) as checkpoint:
            checkpoint.mkdir()
            # in the order they were written in: the run's files last, when all others have come whole
            for name, digest in digests.items():
                target = run / name.removeprefix(RUN) if name.startswith(RUN) else checkpoint / name
                with replacing(target, is_durable=True) as partial:
                    for _ in range(_TRIES):
                        with self._explained(f"{copy}/{name} cannot be read"), suppress(FileNotFoundError):
                            self._fs.get_file(f"{self._root}/{copy}/{name}", str(partial))
                        if is_right := partial.exists() and hash_file(partial) == digest:
                            break
                        self._fs.invalidate_cache()
                    if not is_right:
                        problem = "is not as it was written" if partial.exists() else "is missing"
                        raise CheckpointError(
                            f"{self.url}/{copy}/{name}: {problem}, by the hash in {MANIFEST}",
                            hint=_OLDER,
                        )
            if path.exists():
                set_aside(path)

    def disown(self, copy: Copy) -> None:
        """Take its manifest from a copy, so that it is none. Raises `OutputError`."""
        path = f"{self._root}/{copy}/{MANIFEST}"
        with self._explained(f"{copy} cannot be removed"):
            if self._fs.exists(path):
                self._fs.rm(path)

    def remove(self, copy: Copy) -> None:
        """Remove a copy, its manifest first. Raises `OutputError`; then it is still one, or none any more."""
        self.disown(copy)
        with self._explained(f"{copy} cannot be removed"):
            self._fs.rm(f"{self._root}/{copy}", recursive=True)

    def require_writable(self) -> None:
        """Write a file and remove it: better an error now than after days. Raises `OutputError`."""
        path = f"{self._root}/.writable"
        with self._explained("cannot be written"):
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, b"glmtune")
            self._fs.rm(path)


def renew_copies(run: Path, url: str, *, keep: int, best_step: int | None) -> Iterator[Copy]:
    """Copy the checkpoints of a run that have no copy, then remove copies as the run removes checkpoints.

    Yields each new copy once it is finished. Kept are the newest `keep` and the best; copies of later steps
    than the run's last are of a life before it was resumed. Raises `OutputError` and `CheckpointError`.
    """
    folder, steps = CopyFolder(url), list[int]()
    finished = {copy: digests[CARD_FILE] for copy, digests in folder.manifests().items() if digests}
    for path in list_checkpoints(run):
        steps.append(step := step_of(path) or 0)
        card = hash_file(path / CARD_FILE)  # which has the hashes of all other files
        if not any(copy.step == step and digest == card for copy, digest in finished.items()):
            own = {each.name: each for each in sorted(path.iterdir()) if each.is_file()}
            runs = {RUN + name: run / name for name in RUN_FILES if (run / name).is_file()}
            finished[copy := folder.write(step, own | runs)] = card
            yield copy
    if not steps:  # somebody has removed them here; there they stay
        return
    lasting = sorted({copy.step for copy in finished if copy.step <= steps[-1]})[-keep:]
    kept = {best_step, *steps_to_keep(run, lasting)}
    newest = {copy.step: copy for copy in sorted(finished) if copy.step in kept}.values()
    for copy in folder.copies():
        if copy not in newest:
            folder.remove(copy)
