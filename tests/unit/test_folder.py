"""A model's folder is read once by a load, and anew by the next."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pytest

from glmtune.adapters.card import read_card
from glmtune.adapters.digest import hash_tokenizer
from glmtune.errors import CheckpointError
from glmtune.families import identify
from glmtune.folder import ModelFolder
from glmtune.load import load_location, load_tokenizer, tokenizer_of
from glmtune.locations import BUNDLED, resolve
from glmtune.models.config import read_config
from glmtune.models.fingerprint import fingerprint
from glmtune.models.shards import scan_tensors
from tuned import tune

_watched: list[Counter[Path]] = []


def _count(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(args[0], str | PathLike):
        _watched[-1][Path(args[0])] += 1


sys.addaudithook(_count)


@contextmanager
def counting() -> Iterator[Counter[Path]]:
    """How often each file is opened inside."""
    _watched.append(Counter())
    try:
        yield _watched[-1]
    finally:
        _watched.pop()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(BUNDLED["glm-tiny"], tmp_path_factory.mktemp("read") / "base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose card knows its base and its tokenizer."""
    folder = tune(base, tmp_path_factory.mktemp("read") / "adapter", "lora")
    here, card = fingerprint(base), read_card(folder)
    assert card
    replace(
        card,
        family=here.family,
        fingerprint={"config": here.config, "weights": here.weights},
        tokenizer_sha256=hash_tokenizer(load_tokenizer(base)),
    ).save(folder)
    return folder


@pytest.mark.parametrize("what", ["base", "adapter"])
def test_a_load_reads_the_base_once(what: str, request: pytest.FixtureRequest, base: Path) -> None:
    """Its config, what tells the chat format, the tokenizer's hash; of the weights headers and values."""
    path: Path = request.getfixturevalue(what)
    with counting() as opened:
        place = resolve(path)
        load_location(place, template=None, dtype="auto", device="cpu")
        tokenizer_of(place, template=None)
    assert opened[base / "config.json"] == 1
    assert opened[base / "generation_config.json"] == 1
    has_card = what == "adapter"
    # the vocabulary: its kind, its bytes, and once its hash; the weights: headers, values, some for the print
    assert opened[base / "tokenizer.model"] == 2 + has_card
    assert opened[base / "model.safetensors"] == 2 + has_card
    assert opened[path / "glmtune.json"] == has_card
    assert opened[path / "adapter_model.safetensors"] == 2 * has_card  # its tensors, and its hash


def test_what_changed_is_seen_by_the_next_load(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    before = resolve(folder)
    assert identify(before.folder).template == "chatglm3"
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"chatglm"', '"other"'), encoding="utf-8")
    assert identify(before.folder).template == "chatglm3"
    with pytest.raises(CheckpointError, match="model_type is 'other'"):
        identify(resolve(folder).folder)


def test_what_fails_is_tried_again(base: Path, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        scan_tensors(folder)
    shutil.copy(base / "model.safetensors", tmp_path)
    assert scan_tensors(folder) is scan_tensors(folder)


def test_a_config_that_is_changed_changes_no_other(base: Path) -> None:
    folder = ModelFolder(base)
    read_config(folder).num_layers = 1
    assert read_config(folder).num_layers > 1
