"""Parquet, saved data sets and Hub names, and the errors if a package or the network is missing."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from glmtune.data.reader import read_dataset, read_examples, read_raw_rows
from glmtune.errors import DataError, MissingDependencyError
from glmtune.recipe.settings import Data

ROWS = [
    {"prompt": "a", "response": "b", "history": None},
    {"prompt": "c", "response": "d", "history": [["a", "b"]]},
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in for the package, so that these tests need neither it nor a network."""
    module = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_parquet_rows_are_read_with_their_numbers():
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), "rows.parquet")
    assert [e.where for e in read_examples(Path("rows.parquet"), Data())] == [
        "rows.parquet (row 1)",
        "rows.parquet (row 2)",
    ]


def test_a_broken_parquet_file_is_named():
    pytest.importorskip("pyarrow")
    Path("rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as parquet"):
        read_raw_rows(Path("rows.parquet"))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Path("rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError) as caught:
        read_raw_rows(Path("rows.parquet"))
    assert (str(caught.value), caught.value.hint) == ("this needs pyarrow", "pip install 'glmtune[parquet]'")


def test_unset_fields_of_a_tables_objects_are_as_if_absent(datasets):
    turns = [
        {"role": "user", "content": "a", "loss": None, "tool_calls": None},
        {"role": "assistant", "content": "b", "loss": False, "tool_calls": None},
    ]
    datasets.load_dataset = lambda *_names, split: [{"messages": turns, "tools": None}]
    (example,) = read_examples(Path("hf:owner/name"), Data())
    assert [m.loss for m in example.messages] == [True, False]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("hf:owner/name", (("owner/name",), "train")),
        ("hf:owner/name:test", (("owner/name",), "test")),
        ("hf:owner/name:zh:test", (("owner/name", "zh"), "test")),
    ],
)
def test_a_hub_name_may_name_config_and_split(datasets, name, asked):
    calls = []
    datasets.load_dataset = lambda *names, split: calls.append((names, split)) or ROWS
    dataset = read_dataset(Path(name), Data())
    assert calls == [asked]
    assert [e.where for e in dataset.examples] == [f"{name} (row 1)", f"{name} (row 2)"]


@pytest.mark.parametrize("name", ["hf:", "hf:owner/name:", "hf:a/b:c:d:e"])
def test_a_bad_hub_name_is_refused(name):
    with pytest.raises(DataError, match="not the name of a Hub data set"):
        read_raw_rows(Path(name))


def test_offline_is_one_line_with_what_to_do(datasets):
    def fail(*_names: str, split: str) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    datasets.load_dataset = fail
    with pytest.raises(DataError) as caught:
        read_raw_rows(Path("hf:owner/name"))
    assert str(caught.value) == "hf:owner/name: cannot be loaded: Couldn't reach the Hub"
    assert "or download the data set and name its file" in caught.value.hint


def test_a_missing_file_that_looks_like_a_hub_name_is_answered_with_it():
    with pytest.raises(DataError) as caught:
        read_raw_rows(Path("owner/name"))
    assert caught.value.hint == "there is no folder owner; a data set of the Hub is hf:owner/name"


def save(name: str) -> Path:
    Path("saved").mkdir()
    (Path("saved") / name).write_text("{}", encoding="utf-8")
    return Path("saved")


def test_a_saved_data_set_is_read(datasets):
    datasets.load_from_disk = lambda _path: ROWS
    assert len(read_examples(save("state.json"), Data())) == 2


def test_of_several_saved_splits_train_is_read(datasets):
    datasets.load_from_disk = lambda _path: {"test": [], "train": ROWS}
    assert len(read_examples(save("dataset_dict.json"), Data())) == 2


def test_several_splits_without_train_are_listed(datasets):
    datasets.load_from_disk = lambda _path: {"zh": [], "en": []}
    with pytest.raises(DataError, match="saved: holds several splits: zh, en") as caught:
        read_raw_rows(save("dataset_dict.json"))
    assert caught.value.hint == f"name one of their folders, such as {Path('saved') / 'zh'}"


def test_a_broken_saved_data_set_is_named(datasets):
    def fail(_path: str) -> None:
        raise FileNotFoundError("no arrow file")

    datasets.load_from_disk = fail
    with pytest.raises(DataError, match="saved: cannot be read as a saved data set: no arrow file"):
        read_raw_rows(save("state.json"))


def test_the_real_package_saves_and_loads(tmp_path):
    package = pytest.importorskip("datasets")
    package.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert len(read_examples(tmp_path / "saved", Data())) == 2


def test_reading_needs_neither_package_for_other_files(monkeypatch):
    for name in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    Path("a.jsonl").write_text('{"prompt": "a", "response": "b"}', encoding="utf-8")
    assert read_raw_rows(Path("a.jsonl")) == [("a.jsonl:1", {"prompt": "a", "response": "b"})]
