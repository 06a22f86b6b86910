"""Recipes from YAML, dicts and words."""

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from glmtune.errors import ConfigError
from glmtune.recipe import AdaLora, Data, Freeze, Full, Lora, Method, Ptuning, Recipe, load_recipe, to_yaml
from glmtune.recipe.describe import describe
from glmtune.recipe.method import METHOD_SETTINGS, MethodSettings
from glmtune.recipe.names import FOREIGN, NEEDLESS, name_here
from glmtune.recipe.parse import build_part, build_recipe, read_method, read_values

BAD = [
    (["train.lrr=1"], "train.lrr: unknown setting", "did you mean train.lr=1?"),
    (["method.alpa=1"], "method.alpa: unknown setting", "did you mean method.alpha=1?"),
    (["sample.prompts=[a]"], "sample: unknown setting", "did you mean samples?"),
    (
        ["method.init_r=3"],
        "method.init_r: unknown setting",
        "it is one of method.name=adalora; lora has alpha, dropout, target_modules, name, r, use_rslora",
    ),
    (["method=full", "method.r=3"], "method.r: unknown setting", "method.name=lora; full has name"),
    (["method=lorra"], "method: unknown method 'lorra'", "did you mean method=lora?"),
    *(
        ([word], f"{key}: unknown {key} null", f"allowed: {first}")
        for key, first in (("method", "full, freeze, lora"), ("objective", "sft"))
        for word in (f"{key}=", f"{key}=null", f"{key}.name=null")
    ),
    (["method=[lora]"], 'method: unknown method ["lora"]', "allowed: full"),
    (["objective=5"], "objective: unknown objective 5", "allowed: sft"),
    (
        ["data.train=[a.jsonl"],
        "[a.jsonl: a list that nothing closes",
        "'data.train=[a.json, b.json]'",
    ),
    (["data.train=[a.jsonl,", "b.jsonl]"], "data.train: [a.jsonl,: a list that nothing closes", "one word"),
    (["data.train=[a,{path: b]"], "data.train: [a,{path: b]: a list that nothing closes", "one word"),
    (["method=galore"], "method: unknown method 'galore'", "allowed: full, freeze, lora, adalora, ptuning"),
    (["train.steps=yes"], "train.steps: must be a number, got True", "glmtune settings"),
    (["train.lr=yes"], "train.lr: must be a number, got True", "glmtune settings"),
    (
        ["train.micro_batch_size=true"],
        "train.micro_batch_size: must be a number of rows, 'N tokens' or auto, got True",
        "train.micro_batch_size=auto",
    ),
    (["train.steps=1.5"], "train.steps: input should be a valid integer", "glmtune settings"),
    (["train.steps=0"], "train.steps: input should be greater than or equal to 1, got 0", "glmtune settings"),
    (
        ["train.steps=5", "train.epochs=1"],
        "steps 5 and epochs 1 both say how long",
        "train.epochs=null leaves the steps",
    ),
    (
        ["data.max_tokens=64", "data.max_source_tokens=32"],
        "max_target_tokens go together",
        "set both",
    ),
    (
        ["method=freeze", "method.num_layers=1", "method.patterns=[a]"],
        "num_layers and patterns both say what is trained",
        "keep one: method.patterns=null",
    ),
    (
        ["method=freeze", "method.patterns=[]"],
        "method.patterns: tuple should have at least 1 item",
        "settings",
    ),
    (["method.target_modules=[]"], "method.target_modules: tuple should have at least 1 item", "settings"),
    (
        ["method=ptuning", "train.lr=1e38"],
        "train.lr: input should be less than or equal to 10000000000",
        "settings",
    ),
    (["train.lr=nan"], "train.lr: input should be a finite number", "settings"),
    (["data.max_source_tokens=64"], "max_target_tokens go together", "set both"),
    (["data.encoding=thudm"], "needs max_source_tokens", "set both"),
    (["lr=1"], "lr: unknown setting", "did you mean train.lr=1?"),
    (["train.seed=-1"], "train.seed: input should be greater than or equal to 0", "glmtune settings"),
    (["quant=int3"], "quant: input should be 'int8', 'int4' or 'nf4', got 'int3'", "glmtune settings"),
    (["quant=int8", "method=full"], "int8 weights cannot be trained", "quant=null"),
    (["quant=nf4", "method=full"], "nf4 weights cannot be trained", "method=lora"),
    (["train.optimizer=adam"], "input should be 'adamw' or 'adamw_8bit', got 'adam'", "optimizer=adamw?"),
    (["train"], "expected key=value", "train.lr=2e-4"),
    (["data=my.json"], "data: a group of settings, got 'my.json'", "data.train=my.json"),
    (["train=5"], "train: a group of settings, got 5", "`glmtune settings train`"),
    (["model.x=1"], "model has no settings inside", "glmtune settings"),
]


@pytest.mark.parametrize(("words", "message", "hint"), BAD, ids=[b[0][-1] for b in BAD])
def test_a_bad_setting_is_named_with_what_is_allowed(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe({"model": "m"}, words)
    assert message in str(caught.value)
    assert hint in caught.value.hint


ELSEWHERE = {
    "learning_rate=2e-4": "here that is train.lr=0.0002",
    "train.learning_rate=2e-4": "here that is train.lr=0.0002",
    "data.lr=1": "did you mean train.lr=1?",
    "model_name_or_path=/m": "here that is model=/m",
    "data.train_file=x.json": "here that is data.train=x.json",
    "train.output_dir=out": "here that is output=out",
    "train.template=chatglm2": "did you mean template=chatglm2?",
    "max_new_tokens=9": "did you mean retain.max_new_tokens=9 or samples.max_new_tokens=9 or "
    "evaluate.max_new_tokens=9?",
    "name=小橙": "here that is data.fill.name=小橙, for rows that have {{name}}",
    "author=橙子工作室": "here that is data.fill.author=橙子工作室, for rows that have {{author}}",
    "quantization_bit=4": "here that is quant=int4",
    "quantization_bit=3": "here that is quant=...",
    "load_in_4bit=true": "here that is quant=nf4",
    "fp16=true": "here that is train.precision=fp16",
    "pre_seq_len=128": "here that is method=ptuning method.num_prefix_tokens=128",
    "lora_r=16": "here that is method.r=16",
    "method.lora_alpha=16": "here that is method.alpha=16",
    "num_train_epochs=3": "here that is train.epochs=3",
    "train.num_train_epochs=three": "here that is train.epochs=...",
    "max_source_length=64": "here that is data.max_source_tokens=64",
    "per_device_train_batch_size=4": "here that is train.micro_batch_size=4; train.batch_size counts",
    "report_to=wandb": "did you mean train.report_to=...?",
    "deepspeed=ds.json": "leave it out: distributed=deepspeed is its engine here; several cards: `torchrun",
    "method=qlora": "here that is method=lora quant=nf4",
    "method=P-Tuning": "did you mean method=ptuning?",
    "method=ptuning_v2": "here that is method=ptuning",
    "method.name=sft": "here that is method=full",
    "quant=4": "here that is quant=int4",
    "quant=8bit": "here that is quant=int8",
    "dtype=float16": "here that is dtype=fp16",
    "train.precision=torch.bfloat16": "here that is train.precision=bf16",
    "train.schedule=constant_with_warmup": "here that is train.schedule=constant",
    "template=chatglm-2": "did you mean template=chatglm2?",
}
"""Names and values of the official scripts, PEFT and LLaMA-Factory, and their hints."""


@pytest.mark.parametrize("word", ELSEWHERE)
def test_a_name_of_another_program_is_told_its_name_here(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe({"model": "m"}, [word])
    assert caught.value.hint.startswith(ELSEWHERE[word])


@pytest.mark.parametrize("name", [*FOREIGN, *NEEDLESS])
def test_no_name_of_another_program_is_one_of_ours(name: str) -> None:
    assert name not in {row.key for row in describe()}
    assert name_here(name)


def test_a_recipe_without_a_model_is_an_error() -> None:
    with pytest.raises(ConfigError, match="model: missing"):
        load_recipe({})


def test_words_come_on_top_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain: {lr: 1e-5, steps: 7}\nmethod: {name: lora, r: 4}\n", encoding="utf-8")
    recipe = load_recipe(path, ["train.lr=2e-4", "method.alpha=16"])
    assert (recipe.train.lr, recipe.train.steps) == (2e-4, 7)
    assert recipe.method == Lora(r=4, alpha=16)
    assert load_recipe(path, ["method=full"]).method == Full()


RIVALS = [
    ("train: {epochs: 50}", ["train.steps=20"], "train", {"steps": 20, "epochs": None}),
    ("train: {steps: 50}", ["train.epochs=2"], "train", {"steps": None, "epochs": 2}),
    ("train: {steps: 50}", ["train.epochs=null"], "train", {"steps": 50, "epochs": None}),
    (
        "data: {max_source_tokens: 64, max_target_tokens: 32}",
        ["data.max_tokens=99"],
        "data",
        {"max_tokens": 99, "max_source_tokens": None, "max_target_tokens": None},
    ),
    (
        "data: {max_tokens: 99}",
        ["data.max_source_tokens=64", "data.max_target_tokens=32"],
        "data",
        {"max_tokens": None, "max_source_tokens": 64, "max_target_tokens": 32},
    ),
    (
        "data: {max_source_tokens: 64, max_target_tokens: 32}",
        ["data.max_target_tokens=16"],
        "data",
        {"max_source_tokens": 64, "max_target_tokens": 16},
    ),
    ("method: {name: freeze, num_layers: 1}", ["method.patterns=[a]"], "method", {"num_layers": None}),
    ("method: {name: freeze, patterns: [a]}", ["method.num_layers=1"], "method", {"patterns": None}),
]


@pytest.mark.parametrize(("text", "words", "group", "expected"), RIVALS, ids=[r[1][-1] for r in RIVALS])
def test_a_word_stands_in_place_of_what_the_file_says_in_the_other_way(
    text: str, words: list[str], group: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: m\n{text}\n", encoding="utf-8")
    for recipe in (
        load_recipe(path, words),
        build_recipe(read_values(path), read_values({}, [*method_of(text), *words])),
    ):
        found = getattr(recipe, group).model_dump()
        assert {key: found[key] for key in expected} == expected


def method_of(text: str) -> list[str]:
    """A layer that has a method replaces the whole of it."""
    return ["method=freeze"] if text.startswith("method") else []


def test_both_ways_in_one_file_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain: {steps: 5, epochs: 1}\n", encoding="utf-8")
    for words in ([], ["train.lr=1"]):
        with pytest.raises(ConfigError, match="both say how long"):
            load_recipe(path, words)


def test_a_number_without_a_point_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain: {lr: 1e-5}\n", encoding="utf-8")
    assert load_recipe(path).train.lr == 1e-5


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load_recipe(
        {"model": "m", "data": {"train": "a.json"}}, ["method.r=4", "samples.prompts=[你好]"]
    )
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_broken_yaml_is_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ntrain: [1\nlr: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"r\.yaml:3:3: not valid YAML"):
        load_recipe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read"):
        load_recipe(tmp_path / "no.yaml")


def test_every_setting_has_words_and_appears_once() -> None:
    rows = list(describe())
    assert all(row.text for row in rows)
    keys, chosen = [], dict[str, str]()
    for row in rows:  # two methods, or two objectives, may have a setting of the same name
        group, _, name = row.key.rpartition(".")
        if group and name == "name":
            chosen[group] = row.kind
        keys.append((row.key, chosen.get(group)))
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "text", ["a # b", "#1 seller", "Translate: ", "yes", "1e3", "[x]", "null hypothesis"]
)
def test_a_text_setting_takes_the_word_as_it_is(text: str) -> None:
    recipe = load_recipe({"model": "m"}, [f"data.source_prefix={text}", f"data.test={text}"])
    assert recipe.data.source_prefix == text
    assert recipe.data.test == Path(text)


def test_null_empties_a_setting_that_may_be_empty() -> None:
    assert load_recipe({"model": "m", "data": {"system": "x"}}, ["data.system=null"]).data.system is None


def test_one_word_is_a_list_of_one() -> None:
    recipe = load_recipe({"model": "m"}, ["samples.prompts=你好", "method.target_modules=dense"])
    assert recipe.samples.prompts == ("你好",)
    assert recipe.method == Lora(target_modules=("dense",))


def test_a_path_in_the_home_folder_is_found() -> None:
    assert load_recipe({"model": "m"}, ["data.train=~/x.json"]).data.train == Path.home() / "x.json"


@pytest.mark.parametrize("kind", ["dict in itself", "deep dict", "deep list"])
def test_settings_nested_without_end_are_refused(kind: str) -> None:
    settings: Any = {"model": "m"}
    inner: Any = settings
    for _ in range(100_000 if kind != "dict in itself" else 0):
        inner = {"train": inner} if kind == "deep dict" else [inner]
    settings = {"model": "m", "train": inner}
    if kind == "dict in itself":
        settings["train"] = settings
    for read in (load_recipe, build_recipe):
        with pytest.raises(ConfigError, match="nested more than 9 deep"):
            read(settings)


@pytest.mark.parametrize("source", [5, None, [], b"recipe.yaml"])
def test_a_path_that_is_no_text_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match=f"a path is text, not of type {type(source).__name__}"):
        load_recipe(source)


@pytest.mark.parametrize(
    ("source", "words", "expected"),
    [
        ({"evaluate": {"max_rows": None}}, [], None),
        ({"evaluate": {"max_rows": 3}}, [], 3),
        ({"evaluate": {"max_rows": 3}, "data": Data(max_rows=9)}, [], 3),
        ({"evaluate": {"max_rows": 3}}, ["data.max_test_rows=5"], 5),
        ({"data": {"max_test_rows": 3}}, ["evaluate.max_rows=5"], 5),
        ({}, ["data.max_test_rows=5", "evaluate.max_rows=null"], 5),
    ],
)
def test_the_older_name_of_the_number_of_test_rows_is_read(
    source: dict[str, Any], words: list[str], expected: int | None
) -> None:
    recipe = load_recipe({"model": "m", **source}, words)
    assert recipe.data.max_test_rows == expected
    assert load_recipe(recipe) == recipe


def test_both_names_of_the_number_of_test_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"older name of data\.max_test_rows"):
        load_recipe({"model": "m"}, ["data.max_test_rows=5", "evaluate.max_rows=3"])


def test_dotted_keys_of_a_dict_and_a_file_are_settings_of_their_groups(tmp_path: Path) -> None:
    dotted = {"model": "m", "method": "lora", "method.r": 4, "data.train": "a.json", "data": {"max_rows": 3}}
    nested = {"model": "m", "method": {"name": "lora", "r": 4}, "data": {"train": "a.json", "max_rows": 3}}
    (tmp_path / "r.yaml").write_text(
        "model: m\nmethod.r: 4\ndata.train: a.json\ndata: {max_rows: 3}\n", "utf-8"
    )
    assert load_recipe(dotted) == load_recipe(nested) == load_recipe(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match=r"data\.train: given twice") as caught:
        load_recipe({**nested, "data.train": "b.json"})
    assert caught.value.hint
    with pytest.raises(ConfigError, match=r"data\.trian: unknown setting"):
        load_recipe({"model": "m", "data.trian": "a.json"})


def test_a_misspelled_name_of_another_program_leads_to_ours() -> None:
    assert name_here("lerning_rate", 3e-4) == "did you mean learning_rate? here that is train.lr=0.0003"
    assert name_here("nothing_alike") == ""


@pytest.mark.parametrize(
    "values",
    [
        {"name": "loar"},
        {"name": 3},
        {"name": None},
        {"name": ["lora"]},
        {"r": 0},
        {"name": "lora", "rr": 3},
        {"name": "lora", "init_r": 3},
        {"name": "adalora", "target_r": 12},
        {"name": "ptuning", "projection": "maybe"},
        {"name": "freeze", "num_layers": True},
    ],
)
def test_a_method_alone_is_refused_as_a_recipes_is(values):
    errors = []
    for read in (read_method, lambda method: load_recipe({"model": "m", "method": method})):
        with pytest.raises(ConfigError) as caught:
            read(values)
        errors.append((str(caught.value), caught.value.hint))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", METHOD_SETTINGS)
def test_a_method_alone_is_that_of_a_recipe(name):
    assert read_method({"name": name}) == load_recipe({"model": "m", "method": name}).method


def test_a_method_that_the_table_has_is_read(monkeypatch):
    class Bias(MethodSettings):
        default_lr, lr_source = 1e-3, "a test"
        name: Literal["bias"] = "bias"
        scale: float = 1.0

    monkeypatch.setitem(METHOD_SETTINGS, "bias", Bias)
    recipe = load_recipe({"model": "m"}, ["method=bias", "method.scale=2"])
    assert recipe.method == read_method({"name": "bias", "scale": 2}) == Bias(scale=2.0)
    assert load_recipe(recipe) == load_recipe(yaml.safe_load(to_yaml(recipe))) == recipe
    with pytest.raises(ConfigError, match=r"method\.scale: input should be a valid number, .* got 'x'"):
        load_recipe({"model": "m", "method": {"name": "bias", "scale": "x"}})


@pytest.mark.parametrize(
    "values", [{"max_rows": 0}, {"max_row": 1}, {"encoding": "thudm"}, {"train": "a\tb"}]
)
def test_a_group_alone_is_refused_as_a_recipes_is(values):
    errors = []
    for read in (
        lambda data: build_part(Data, data, "data"),
        lambda data: load_recipe({"model": "m", "data": data}),
    ):
        with pytest.raises(ConfigError) as caught:
            read(values)
        errors.append((str(caught.value), caught.value.hint))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    "method", [Full(), Freeze(num_layers=1), Lora(r=4), AdaLora(init_r=4, target_r=2), Ptuning()]
)
def test_a_recipe_made_of_typed_parts_keeps_its_method(method: Method) -> None:
    """The type says the name, though nobody has set it."""
    recipe = Recipe(model="m", method=method)
    assert load_recipe(recipe, ["train.steps=3"]).method == method
    assert load_recipe(to_yaml_values(recipe)).method == method


def to_yaml_values(recipe: Recipe) -> dict[str, Any]:
    return dict(yaml.safe_load(to_yaml(recipe)))
