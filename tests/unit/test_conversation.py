"""What chat sends is what training shows: one rendering, one value for the texts around a conversation."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import glmtune
from fuzz import examples
from glmtune.adapters.store import Card, save_trained
from glmtune.conversation import encode_messages
from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.data.prompts import encode_prompts
from glmtune.data.reader import read_dataset
from glmtune.errors import ConfigError
from glmtune.methods import apply_method
from glmtune.recipe import Lora
from glmtune.recipe.settings import Data
from glmtune.templates import TEMPLATES, Message, Taught, render_messages
from glmtune.workflows.rows import training_rows
from models import tiny_folder
from tiny import tiny_tokenizer

Row = list[dict[str, Any]]
ROUNDS = {"chatglm", "chatglm2"}
"""The formats that have no system text."""
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
"""A question may be of blanks, or of the spelling of a control token."""
TALKS = st.lists(
    st.tuples(WORDS | st.sampled_from(["<|user|>", "</s>", " "]), WORDS.filter(str.strip)),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: tiny_tokenizer(tmp_path_factory.mktemp(name), name) for name in TEMPLATES}


def dicts(talk: list[tuple[str, str]]) -> Row:
    return [
        {"role": role, "content": text}
        for texts in talk
        for role, text in zip(("user", "assistant"), texts, strict=True)
    ]


@settings(max_examples=examples(25), deadline=None)
@given(TALKS, WORDS, WORDS, st.booleans())
def test_training_and_evaluation_show_what_encode_messages_sends(
    tokenizers: dict[str, Any], talk: list[tuple[str, str]], system: str, prefix: str, has_own: bool
) -> None:
    for name, tokenizer in tokenizers.items():
        taught = Taught(None if name in ROUNDS else system, prefix)
        own = [] if name in ROUNDS or not has_own else [{"role": "system", "content": "自己的"}]
        row = [*own, *dicts(talk)]
        data = Data(system=taught.system, source_prefix=prefix, loss="last_turn", max_tokens=10_000)
        example = Example(tuple(Message(**turn) for turn in row), "rows.jsonl:1")
        sent = encode_messages(tokenizer, row[:-1], taught=taught)
        (learned,) = encode_examples(tokenizer, [example], data).rows
        assert learned.input_ids[: len(sent)].tolist() == sent
        assert set(learned.labels[: len(sent)].tolist()) == {-100}
        assert learned.labels[len(sent) :].tolist() == learned.input_ids[len(sent) :].tolist()
        assert encode_prompts(tokenizer, [example], data)[0][0].ids == sent


def test_a_system_text_of_its_own_comes_before_the_taught_one() -> None:
    taught = Taught("你是店员", "写：")
    assert taught.begin([Message("user", "早")]) == [Message("system", "你是店员"), Message("user", "早")]
    own = [Message("system", "自己的"), Message("user", "早")]
    assert taught.begin(own) == own
    assert Taught().begin(own[1:]) == own[1:]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"taught": "你是店员"}, "taught: must be what a tokenizer was taught, got '你是店员'"),
        ({"source_prefix": 3}, "source_prefix: must be text, got 3"),
        ({"assistant_name": ["甲"]}, "assistant_name: must be text, got"),
    ],
)
def test_an_option_of_another_kind_is_refused_by_name(
    tokenizers: dict[str, Any], option: dict[str, Any], said: str
) -> None:
    asked = [{"role": "user", "content": "早"}]
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        encode_messages(tokenizers["glm4"], asked, **option)
    assert caught.value.hint
    with pytest.raises(ConfigError, match=f"^{said}"):
        render_messages("chatglm", asked, **option)


def test_an_option_that_is_none_is_as_none(tokenizers: dict[str, Any]) -> None:
    asked = [{"role": "user", "content": "早"}]
    unset = {"taught": None, "source_prefix": None, "assistant_name": None, "enable_thinking": None}
    assert encode_messages(tokenizers["glm4"], asked, **unset) == encode_messages(tokenizers["glm4"], asked)


def test_tools_stand_in_the_turn_of_the_taught_system_text_as_in_training(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    tools = [{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}]
    asked = {"role": "user", "content": "几点？"}
    row = {"messages": [asked, {"role": "assistant", "content": "不知道"}], "tools": tools}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    data = Data(system="短")
    examples = read_dataset(tmp_path / "rows.jsonl", data).examples
    for name in TEMPLATES.keys() - ROUNDS:
        sent = encode_messages(tokenizers[name], [asked], tools=tools, taught=Taught("短"))
        (learned,) = encode_examples(tokenizers[name], examples, data).rows
        assert learned.input_ids[: len(sent)].tolist() == sent


def test_an_untrained_models_tokenizer_was_taught_nothing(tokenizers: dict[str, Any]) -> None:
    asked = [{"role": "user", "content": "早"}]
    for tokenizer in tokenizers.values():
        assert encode_messages(tokenizer, asked, taught=tokenizer.taught) == encode_messages(tokenizer, asked)


def test_the_tokenizer_of_an_adapter_knows_what_it_was_taught(tmp_path: Path) -> None:
    base, adapter = tiny_folder(tmp_path / "base"), tmp_path / "adapter"
    card = Card(base=str(base), template="chatglm3", method={}, system="你是店员", source_prefix="写：")
    tuned = apply_method(glmtune.load_model(base), Lora(r=2))
    save_trained(tuned, adapter, card)
    tokenizer = glmtune.load_tokenizer(adapter)
    assert tokenizer.taught == Taught("你是店员", "写：")
    spelled = [{"role": "system", "content": "你是店员"}, {"role": "user", "content": "写：早"}]
    asked = spelled[1] | {"content": "早"}
    assert glmtune.encode_messages(tokenizer, [asked], taught=tokenizer.taught) == glmtune.encode_messages(
        tokenizer, spelled
    )


def test_the_public_ids_of_a_question_are_those_that_its_run_trained_on(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"prompt": "问{i}", "response": "答{i}"}}\n' for i in range(4)), encoding="utf-8"
    )
    data = {"train": str(rows), "validation": str(rows), "system": "你是店员", "source_prefix": "写："}
    run = glmtune.train(
        model=str(base),
        data=data,
        train={"steps": 1},
        samples={"prompts": []},
        output=str(tmp_path / "run"),
        quiet=True,
    )
    tokenizer = glmtune.load_tokenizer(run.path)
    (first, *_) = training_rows(tokenizer, Data(**data)).train.rows
    sent = glmtune.encode_messages(tokenizer, [{"role": "user", "content": "问0"}], taught=tokenizer.taught)
    assert first.input_ids[: len(sent)].tolist() == sent
    assert first.labels[len(sent) - 1 : len(sent) + 1].tolist() == [-100, first.input_ids[len(sent)]]
