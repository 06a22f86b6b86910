"""Read rows through other packages: parquet with `pyarrow`, data sets with `datasets`. Both are extras."""

from pathlib import Path
from typing import Any, NamedTuple

from glmtune.errors import DataError, first_line
from glmtune.extras import require

HUB_PREFIX = "hf:"
HUB_FORM = "hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT"
DEFAULT_SPLIT = "train"
SAVED = "state.json"
SAVED_SPLITS = "dataset_dict.json"


class RawRow(NamedTuple):
    """A raw row and its origin."""

    where: str
    """File and line, or file and number of the row."""
    value: Any
    """The row as its file holds it: usually an object, but JSON may hold anything."""


# Parquet


def is_parquet(path: Path) -> bool:
    """True if the path is a file whose name ends with .parquet."""
    return path.suffix.lower() == ".parquet" and path.is_file()


def parquet_rows(path: Path) -> list[RawRow]:
    """Return the rows of a parquet file. Raises `DataError` for a broken one."""
    pyarrow, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    try:
        values = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as err:
        raise DataError(
            f"{path}: cannot be read as parquet: {first_line(err)}",
            hint="write it again, or convert it to JSON lines",
        ) from None
    return _rows(values, str(path))


# Data sets


def is_saved_dataset(path: Path) -> bool:
    """True if the folder was written by `save_to_disk` of the `datasets` package."""
    return path.is_dir() and any((path / name).is_file() for name in (SAVED, SAVED_SPLITS))


def saved_rows(path: Path) -> list[RawRow]:
    """Return the rows of a saved data set, of its split `train` if there are several. Raises `DataError`."""
    datasets = require("datasets", extra="datasets")
    try:
        dataset = datasets.load_from_disk(str(path))
        if (path / SAVED_SPLITS).is_file():
            splits = list(dataset)
            if DEFAULT_SPLIT not in splits and len(splits) != 1:
                raise DataError(
                    f"{path}: holds several splits: {', '.join(splits)}",
                    hint=f"name one of their folders, such as {path / splits[0]}",
                )
            dataset = dataset[DEFAULT_SPLIT if DEFAULT_SPLIT in splits else splits[0]]
        return _rows(list(dataset), str(path))
    except (OSError, ValueError) as err:
        raise DataError(
            f"{path}: cannot be read as a saved data set: {first_line(err)}",
            hint="save it again with save_to_disk",
        ) from None


def is_hub_name(path: Path) -> bool:
    """True for the name of a data set of the Hugging Face Hub: `hf:OWNER/NAME`."""
    return path.as_posix().startswith(HUB_PREFIX)


def hub_rows(name: Path) -> list[RawRow]:
    """Return the rows of a Hub data set, downloaded or from the cache. Raises `DataError`."""
    where = name.as_posix()
    dataset, *rest = where.removeprefix(HUB_PREFIX).split(":")
    if not dataset or len(rest) > 2 or not all(rest):
        raise DataError(f"{where}: not the name of a Hub data set", hint=f"write {HUB_FORM}")
    datasets = require("datasets", extra="datasets")
    try:
        rows = datasets.load_dataset(dataset, *rest[:-1], split=rest[-1] if rest else DEFAULT_SPLIT)
        return _rows(list(rows), where)
    except (OSError, ValueError, RuntimeError) as err:  # offline, unknown name, unknown split or config
        raise DataError(
            f"{where}: cannot be loaded: {first_line(err)}",
            hint=f"check name and network ({HUB_FORM}), or download the data set and name its file",
        ) from None


def hub_hint(path: Path) -> str:
    """Return the advice to add if a missing file looks like a name of the Hub, else nothing."""
    is_like_one = len(path.parts) == 2 and not path.suffix and not path.is_absolute()
    return f"; a data set of the Hub is {HUB_PREFIX}{path.as_posix()}" if is_like_one else ""


def _rows(values: list[Any], where: str) -> list[RawRow]:
    return [
        RawRow(f"{where} (row {number})", {name: _without_unset(cell) for name, cell in value.items()})
        for number, value in enumerate(values, start=1)
    ]


def _without_unset(value: object) -> object:
    """Return a cell without null fields: in a table's column every object has the fields of all others."""
    if isinstance(value, dict):
        return {key: _without_unset(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_unset(item) for item in value]
    return value
