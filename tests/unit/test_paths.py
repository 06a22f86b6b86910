"""Paths that no file system can hold are refused before anything is opened."""

from pathlib import Path

import pytest

from glmtune import load_model, load_tokenizer
from glmtune.errors import ConfigError
from glmtune.locations import lasting_name, resolve
from glmtune.paths import read_path
from glmtune.recipe import load_recipe

BAD = {
    "a\0b": "zero character",
    "a" * 256: "a name of 256 bytes",
    "的" * 86: "a name of 258 bytes",
    "a/" * 2100: "a path of 4,199 bytes",
    "a" * 5000: "a name of 5,000 bytes",
    "x\ud800": "which no name of",
    "~nobody-of-this-name/x": "no user of this name",
}


@pytest.mark.parametrize("path", BAD, ids=lambda path: ascii(path[:8]))
def test_a_path_that_cannot_be_is_refused_wherever_it_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=BAD[path]):
        read_path(path)
    for opens in (resolve, load_model, load_tokenizer, lasting_name):
        with pytest.raises(ConfigError, match=BAD[path]):
            opens(path)
    for key in ("output", "base", "data.train", "data.test"):
        group, _, name = key.rpartition(".")
        value = {name: path}
        with pytest.raises(ConfigError, match=f"{key}: .*{BAD[path]}"):
            load_recipe({"model": "glm-tiny", **({group: value} if group else value)})
    with pytest.raises(ConfigError, match=f"model: .*{BAD[path]}"):
        load_recipe({"model": path})


def test_the_longest_path_and_odd_names_stay_what_they_are() -> None:
    for text in ("a" * 255, "的" * 85, "a/" * 2047, "b\udcff", "a\n", "你好 x"):
        assert read_path(text) == Path(text)
    assert read_path("~/x") == Path.home() / "x"


def test_a_folder_of_weights_needs_a_name_in_utf8() -> None:
    assert load_recipe({"model": "m", "data": {"train": "b\udcff"}}).data.train == Path("b\udcff")
    for recipe in ({"model": "b\udcff"}, {"model": "m", "output": "b\udcff"}):
        with pytest.raises(ConfigError, match="no name of a folder of weights"):
            load_recipe(recipe)
