"""A model folder as one value: each of its files is read once, at the first use."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

from glmtune.files import hash_file, is_there, read_json, read_text

LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""The weight files of a checkpoint: a single file, or the index of several shards.

The order is that of transformers: a single file comes first, as saving one over shards leaves their index.
"""

Found = TypeVar("Found")


class ModelFolder:
    """A model folder and the contents of its files, cached.

    The cache is never invalidated: each load makes a new `Location` with a new `ModelFolder`, so a file that
    has changed since is read again. `families.identify` and `models.shards.scan_tensors` cache their results
    here too, by `once`. Loads no torch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._contents: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, str] = {}
        self._found: dict[Callable[..., Any], Any] = {}

    @classmethod
    def of(cls, folder: "str | PathLike[str] | ModelFolder") -> "ModelFolder":
        """Return `folder` itself if it is a ModelFolder, else the one at that path."""
        return folder if isinstance(folder, ModelFolder) else cls(Path(folder))

    def __str__(self) -> str:
        """Return the path, as messages name the folder."""
        return str(self.path)

    @property
    def config(self) -> Mapping[str, Any]:
        """The contents of config.json; empty if there is none."""
        return self.json("config.json")

    @property
    def has_weights(self) -> bool:
        """True if the folder holds weights, in any of `LAYOUTS`."""
        return any((self.path / name).exists() for layout in LAYOUTS for name in layout)

    def json(self, name: str, *, is_required: bool = False) -> Mapping[str, Any]:
        """Return the object in one of its JSON files; empty if there is no such file.

        Raises `CheckpointError`, with `is_required` also for a missing file.
        """
        if name not in self._contents:
            if not is_required and not is_there(self.path / name):
                return {}  # not cached: the file may be written later
            self._contents[name] = read_json(self.path / name)
        return self._contents[name]

    def text(self, name: str) -> str:
        """Return the text of a file; empty if there is no such file. Raises `CheckpointError`."""
        path = self.path / name
        return read_text(path) if path.exists() else ""

    def hash(self, name: str) -> str | None:
        """Return the SHA-256 of a file; None if there is no such file. Raises `CheckpointError`."""
        if name not in self._hashes and (self.path / name).is_file():
            self._hashes[name] = hash_file(self.path / name)
        return self._hashes.get(name)

    def once(self, read: "Callable[[ModelFolder], Found]") -> Found:
        """Return `read(self)`, computed once for each `read`. Callers must not change the value."""
        if read not in self._found:
            self._found[read] = read(self)
        return cast("Found", self._found[read])

    def suppose(self, read: "Callable[[ModelFolder], Found]", value: Found) -> None:
        """Have `once(read)` return this value, for files that are not there."""
        self._found[read] = value
