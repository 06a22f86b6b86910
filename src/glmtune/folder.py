"""A model's folder as one value: what its files say is read once, by whoever asks first."""

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

from glmtune.files import hash_file, is_there, read_json, read_text

LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Of a checkpoint: a single file and the index of several, in transformers' order, for saving one file over
shards leaves their index behind."""
Found = TypeVar("Found")


class ModelFolder:
    """A model's folder.

    It lives as long as the `Place` that found it, so that a file that has changed is read by the next load.
    `families` tells what it is, `models.shards` which tensors it holds; both go through `once`. Loads no
    torch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._contents: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, str] = {}
        self._found: dict[Callable[..., Any], Any] = {}

    @classmethod
    def of(cls, folder: "str | PathLike[str] | ModelFolder") -> "ModelFolder":
        """The folder itself, or that at a path."""
        return folder if isinstance(folder, ModelFolder) else cls(Path(folder))

    def __str__(self) -> str:
        """Its path, as messages name it."""
        return str(self.path)

    @property
    def config(self) -> Mapping[str, Any]:
        """What config.json says; empty where there is none."""
        return self.json("config.json")

    @property
    def has_weights(self) -> bool:
        """Whether a checkpoint's file is in it, in any layout."""
        return any((self.path / name).exists() for layout in LAYOUTS for name in layout)

    def json(self, name: str, *, is_required: bool = False) -> Mapping[str, Any]:
        """The object in one of its JSON files; empty where there is none, unless it `is_required`.

        Raises `CheckpointError`.
        """
        if name not in self._contents:
            if not is_required and not is_there(self.path / name):
                return {}
            self._contents[name] = read_json(self.path / name)
        return self._contents[name]

    def text(self, name: str) -> str:
        """A file's text; empty where there is none. Raises `CheckpointError`."""
        path = self.path / name
        return read_text(path) if path.exists() else ""

    def hash(self, name: str) -> str | None:
        """SHA-256 of a file; None where there is none. Raises `CheckpointError`."""
        if name not in self._hashes and (self.path / name).is_file():
            self._hashes[name] = hash_file(self.path / name)
        return self._hashes.get(name)

    def once(self, read: "Callable[[ModelFolder], Found]") -> Found:
        """What `read` makes of the folder; later the same value again, which nobody may change."""
        if read not in self._found:
            self._found[read] = read(self)
        return cast("Found", self._found[read])
