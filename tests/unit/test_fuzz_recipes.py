"""Recipes, words and old configurations as nobody means them: read, or refused in words, and soon."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import ODD, Outcomes, fuzzed, odd_bytes, odd_values
from glmtune.errors import ConfigError
from glmtune.migration.configs import draft_config
from glmtune.recipe import load_recipe, to_yaml
from glmtune.strict import MOST_YAML, dump_yaml, parse_yaml

RECIPE = {
    "model": "glm-tiny",
    "method": {"name": "lora", "r": 8, "target_modules": ["dense"], "dropout": 0.1},
    "data": {"train": "a.json", "max_source_tokens": 64, "max_target_tokens": 64, "ignore_columns": ["id"]},
    "train": {"epochs": 2, "lr": 1e-4, "gradient_checkpointing": True},
    "samples": {"prompts": ["你好"]},
}
CONFIG = {
    "data_config": {"train_file": "train.json", "val_file": "dev.json", "num_proc": 16},
    "max_input_length": 256,
    "max_output_length": 512,
    "training_args": {
        "output_dir": "./output",
        "max_steps": 3000,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "evaluation_strategy": "steps",
        "predict_with_generate": True,
        "generation_config": {"max_new_tokens": 512},
    },
    "peft_config": {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["query_key_value"]},
}
"""As ChatGLM3's lora.yaml."""
WORDS = ("train.lr=1e-4", "method={name: lora, r: 8}", "data.ignore_columns=[a, b]", "train.steps=3", "a=1")
TYPED = (
    *(
        "!!timestamp xx",
        "!!int x",
        "!!binary x",
        "!!set {a}",
        "&x [*x]",
        "{<<: 3}",
        "? [a]",
        "0x" + "f" * 5000,
    ),
    *(
        "1" * 5000,
        "1" + ":59" * 3000,
        "[" * 50_000,
        "2024-13-45",
        "~nobody",
        "\udcff",
        "\0",
        "[a",
        "{a: b: c}",
        "=",
        "@",
    ),
)


def _text(value: Any) -> str:
    text = dump_yaml(value)
    for word, written in (
        ("@long@", "9" * 5000),
        ("@deep@", "[" * 50_000 + "]" * 50_000),
        ("@huge@", "1e999"),
    ):
        text = text.replace(f"'{word}'", written)
    return text


@st.composite
def files(draw: st.DrawFn, value: dict[str, Any]) -> bytes:
    return draw(odd_bytes(_text(draw(odd_values(value))).encode("utf-8", errors="surrogatepass")))


@st.composite
def words(draw: st.DrawFn) -> str:
    word = draw(st.sampled_from(WORDS))
    key, _, value = word.partition("=")
    made = f"{draw(st.sampled_from([key, 'train.steps', 'data.train', 'method.r', 'x' * 999, 'a.' * 9999]))}="
    odd = draw(st.sampled_from([*TYPED, *(str(value) for value in ODD)]))
    return draw(st.sampled_from([word, word + odd, made + value, made + odd]))


def _read_all(count: int) -> Outcomes:
    outcomes = Outcomes()

    @fuzzed(count)
    @given(files(RECIPE), files(CONFIG), words())
    def check(recipe: bytes, config: bytes, word: str) -> None:
        with TemporaryDirectory() as folder:
            path, other = Path(folder) / "recipe.yaml", Path(folder) / "lora.yaml"
            path.write_bytes(recipe)
            other.write_bytes(config)
            found = outcomes(lambda: load_recipe(path))
            typed = outcomes(lambda: load_recipe(RECIPE, [word]))
            outcomes(lambda: draft_config(other).to_text())
            for made in (found, typed):  # whatever was read can be written, and is then the same
                if made is not None:
                    path.write_text(to_yaml(made), encoding="utf-8")
                    assert load_recipe(path) == made

    check()
    return outcomes


def test_recipes_words_and_configurations_are_read_or_refused_in_words() -> None:
    _read_all(60).check(least=40)


@pytest.mark.slow
def test_many_more_recipes_words_and_configurations_are_read_or_refused_in_words() -> None:
    _read_all(1500).check(least=1000)


def laughs(levels: int) -> str:
    lines = [
        "a0: &a0 [lol, lol]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)),
    ]
    return "\n".join(lines)


def merges(levels: int) -> str:
    lines = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(["a0: &a0 {k: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: &x [*x]", "r:1:8: the alias *x stands inside what it refers to"),
        ("a: &x {b: *x}", "r:1:11: the alias *x stands inside what it refers to"),
        (laughs(9), "r:7:5: with its aliases written out more than 1,048,576 characters"),
        (merges(9), "r:7:14: with its aliases written out more than 1,048,576 characters"),
        ("a: !!timestamp xx", "r:1:4: not valid YAML here: could not determine a constructor for the tag"),
        ("a: !!int x", "r:1:4: !!int x cannot be read"),
        ("a: !!bool x", "r:1:4: !!bool x cannot be read"),
        ("a: !!omap x", "r:1:4: not valid YAML here"),
        ("a: {<<: 3}", "r:1:9: not valid YAML: expected a mapping or list of mappings for merging"),
        ("[a]: b", "r:1:1: a key must be text, got !!seq"),
        ("yes: b", "r:1:1: a key must be text, got !!bool yes"),
        ("a: " + "1" * 5000, "r:1:4: a number of more than 300 characters"),
        ("a: 1" + ":59" * 999, "r:1:4: a number of more than 300 characters"),
        ("[" * 99_999, "r:1:31: lists and mappings nested more than 30 deep"),
        (
            "\n".join(" " * i + "a:" for i in range(99)),
            "r:30:30: lists and mappings nested more than 30 deep",
        ),
        ('a: "\\Uffffffff"', "r:1:7: not valid YAML"),
        ('a: "\\ud800"', "r:1:4: half a character"),
        ("%YAML " + "1" * 5000 + ".1", "r:1:7: not valid YAML"),
        ("#" * (MOST_YAML + 1), "r: more than 262,144 characters"),
    ],
)
def test_yaml_that_no_value_can_hold_is_named_by_line_and_column(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_yaml(text, "r")
    assert str(refused.value).startswith(fault)
    assert refused.value.hint


def test_a_date_is_text() -> None:
    assert parse_yaml("a: 2024-01-31\nb: 2024-13-45", "r") == {"a": "2024-01-31", "b": "2024-13-45"}
