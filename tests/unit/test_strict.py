"""JSON and YAML: a key given twice is an error with its place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.errors import CheckpointError, ConfigError
from glmtune.files import read_json
from glmtune.migration.configs import draft_config
from glmtune.recipe import load_recipe, to_yaml
from glmtune.strict import (
    KeyTwiceError,
    LongIntegerError,
    TooDeepError,
    dump_yaml,
    load_yaml,
    parse_json,
    parse_yaml,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values, st.sampled_from([None, 1]))
def test_whatever_json_wrote_is_read_back(value, indent):
    assert parse_json(json.dumps(value, indent=indent)) == value


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ('{"a": 1, "a": 2}', 1, 10),
        ('{\n "a": {"b": 1},\n "b": ["a", "a"],\n "a": 3}', 4, 2),
        ('[{"a": 1}, {"x": {"q": "a\\": ", "q": 2}}]', 1, 33),
        ('{"\\u0061": 1, "a": 1}', 1, 15),
    ],
)
def test_a_json_key_given_twice_is_named_by_line_and_column(text, line, column):
    with pytest.raises(KeyTwiceError, match="is given twice") as caught:
        parse_json(text)
    assert (caught.value.lineno, caught.value.colno) == (line, column)


def test_configs_of_others_may_say_the_same_twice_but_not_two_things():
    assert parse_json('{"a": [1], "a": [1]}', may_agree=True) == {"a": [1]}
    with pytest.raises(KeyTwiceError):
        parse_json('{"a": [1], "a": [2]}', may_agree=True)


def test_a_models_file_with_two_values_of_a_key_is_refused_and_our_own_with_any_two(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{\n"hidden_size": 8,\n"hidden_size": 9}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json:3:1: the key 'hidden_size' is given twice"):
        read_json(path)
    path.write_text('{"hidden_size": 8, "hidden_size": 8}', encoding="utf-8")
    assert read_json(path) == {"hidden_size": 8}
    with pytest.raises(CheckpointError, match="given twice"):
        read_json(path, is_ours=True)


@given(st.text("[{", min_size=1, max_size=200), st.booleans())
def test_json_is_read_to_a_depth_of_100_and_not_beyond(brackets, is_closed):
    inner = "".join('{"[[{": ' if bracket == "{" else "[" for bracket in brackets)
    ends = "".join("}" if bracket == "{" else "]" for bracket in reversed(brackets))
    text = f'{inner}"{"[" * 300}"{ends if is_closed else ""}'
    if is_closed and len(brackets) <= 100:
        assert parse_json(text) == json.loads(text)
    elif is_closed or len(brackets) > 900:
        with pytest.raises(TooDeepError, match="nested more than 100 deep") as caught:
            parse_json(text)
        assert text[: caught.value.pos] == "".join('{"[[{": ' if b == "{" else "[" for b in brackets[:100])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_json_nested_without_end_is_refused(text):
    with pytest.raises(TooDeepError, match="nested more than 100 deep"):
        parse_json(text)


@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_is_read_as_far_as_it_can_be_written(sign):
    assert parse_json(f"[{sign}{'9' * 4300}]") == [int(sign + "9" * 4300)]
    assert parse_json(f"[{sign}0.{'9' * 9000}, 1e999]")[1] == float("inf")
    with pytest.raises(LongIntegerError, match="more than 4,300 digits") as caught:
        parse_json(f'["{"9" * 9000}", 0.{"9" * 9000}, {sign}{"9" * 4301}]')
    assert caught.value.pos == 2 + 9000 + 2 + 1 + 9002 + 2


def test_a_recipes_key_given_twice_is_named_by_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\r\ntrain:\r\n  steps: 1\r\n  lr: 1\r\n  steps: 1\r\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.yaml:5:3: the key 'steps' is given twice"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="method: the key 'r' is given twice"):
        load_recipe({"model": "m"}, ["method={name: lora, r: 1, r: 2}"])


def test_a_trainers_configuration_may_say_the_same_twice_but_not_two_things(tmp_path):
    path = tmp_path / "lora.yaml"
    start = "training_args:\n  max_steps: 3\nmax_output_length: 8\nmax_input_length: 8\n"
    path.write_text(f"{start}max_input_length: 8\n", encoding="utf-8")
    assert draft_config(path).settings["data.max_source_tokens"] == 8
    path.write_text(f"{start}max_input_length: 9\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"lora\.yaml:5:1: the key 'max_input_length' is given twice"):
        draft_config(path)


def test_a_key_that_a_yaml_anchor_brings_may_be_given_anew():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a, x: 4}"
    assert load_yaml(text)["c"] == {"x": 4, "y": 2}


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E5", 1e5), ("-.5e+3", -500.0), ("1e", "1e")])
def test_a_number_with_an_exponent_alone_is_a_number(text, value):
    assert load_yaml(text) == value


@given(st.from_regex(r"[-+.0-9eE]{1,9}", fullmatch=True) | st.floats(allow_nan=False) | st.integers())
def test_text_and_numbers_that_were_dumped_as_yaml_are_read_back_as_such(value):
    assert load_yaml(dump_yaml(value)) == value


@given(st.text(st.sampled_from("a =:\n\x85\u2028\u2029'\"1~"), max_size=4))
def test_text_with_line_breaks_and_marks_of_yaml_is_read_back(value):
    assert load_yaml(dump_yaml({value: [value]})) == {value: [value]}


@pytest.mark.parametrize("text", ["a: =", "a: '='", "a:\n  ="])
def test_a_lone_equals_sign_is_text(text):
    assert load_yaml(text) == {"a": "="}


def test_keys_of_others_may_be_numbers_and_ours_not():
    text = "1: a\n1.5: b\nyes: c\nnull: d"
    assert load_yaml(text, may_agree=True) == {"1": "a", "1.5": "b", "yes": "c", "null": "d"}
    for line in text.splitlines():
        with pytest.raises(ConfigError, match=r"r:1:1: a key must be text"):
            parse_yaml(line, "r")
    with pytest.raises(ConfigError, match=r"r:2:1: the key '1' is given twice"):
        parse_yaml("1: a\n'1': b", "r", may_agree=True)


def test_a_commit_that_looks_like_a_number_stays_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(load_recipe({"model": "m", "revision": "12e4567"})), encoding="utf-8")
    assert load_recipe(path).revision == "12e4567"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("data:\n\ttrain: a", "r:2:1: not valid YAML: a tab where YAML has spaces", "indent with spaces"),
        (r'"D:\data"', "in double quotes a backslash", "single quotes"),
        (r'"C:\Users"', "in double quotes a backslash begins an escape", "with /"),
        (r'a: "b"' + "\n" + r'c: "D:\data\x.json"', r"an escape: D:\\data\\x\.json: ", "D:/data/x.json"),
        ('a: "D:\\new\\"', "a quote that nothing closes", "write a path in single quotes"),
    ],
)
def test_tabs_and_backslashes_are_named(text, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_yaml(text, "r")
    assert hint in caught.value.hint


def test_a_list_of_paths_and_a_zero_among_them_are_shown_as_written(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('model: m\ndata: {validation: ["D:\\new.json", b.json]}', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe)
    assert r"'D:\new.json' b.json all.jsonl" in caught.value.hint
    recipe.write_text('model: m\ndata: {train: "D:\\0.json"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="zero character") as caught:
        load_recipe(recipe)
    assert "backslash begins an escape" in caught.value.hint


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("path", [r"D:\new\train.json", r"runs\today"])
def test_a_path_whose_backslashes_became_escapes_is_shown_as_it_was_written(tmp_path, path, mark):
    recipe = tmp_path / "r.yaml"
    for key, text in (("model", f'model: "{path}"'), ("data.train", f'model: m\ndata: {{train: "{path}"}}')):
        recipe.write_text(f"{mark}{text}\n", encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_recipe(recipe)
        assert str(caught.value).startswith(f"{key}: {path}: in double quotes a backslash begins an escape")
        recipe.write_text(f"{mark}{text}\n".replace('"', "'"), encoding="utf-8")  # as the hint says
        assert load_recipe(recipe)
