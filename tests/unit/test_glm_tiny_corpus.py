"""The corpus of glm-tiny: what is in it, what is not, and how it is split."""

import json
from pathlib import Path

import pytest
from tools.glm_tiny import corpus, tokenizer
from tools.glm_tiny.blocks import Row, read_blocks, rows_of

from glmtune.data.reader import read_examples
from glmtune.families import identify
from glmtune.recipe.settings import Data
from glmtune.tokenizers.chatglm import ChatGLMTokenizer

ROOT = Path(__file__).parents[2]

MOST_TOKENS = 192


@pytest.fixture(scope="module")
def sides() -> tuple[list[Row], list[Row]]:
    return corpus.make(seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("corpus")
    corpus.write(found, seed=0)
    tokenizer.train(found / "sentences.txt", found)
    return found


def texts(row: Row) -> list[str]:
    return [text for turn in (*row.history, (row.prompt, row.response)) for text in turn]


def bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(
    folder: Path, sides: tuple[list[Row], list[Row]], tmp_path: Path
) -> None:
    corpus.write(tmp_path / "again", seed=0)
    for name in ("train.jsonl", "heldout.jsonl", "sentences.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert corpus.make(seed=1) != sides


def test_no_held_out_question_is_asked_in_training(sides: tuple[list[Row], list[Row]]) -> None:
    train, held_out = sides
    assert not {(row.history, row.prompt) for row in train} & {(row.history, row.prompt) for row in held_out}
    assert not {row.group for row in train} & {row.group for row in held_out}


def test_what_must_stay_known_is_in_the_training_rows(sides: tuple[list[Row], list[Row]]) -> None:
    train, held_out = sides
    assert {row.root for row in held_out} <= {row.root for row in train} | {""}


def test_both_sides_hold_every_kind_and_about_a_twentieth_is_held_out(
    sides: tuple[list[Row], list[Row]],
) -> None:
    train, held_out = (corpus.count_kinds(side) for side in sides)
    for kind in corpus.KINDS:
        assert 0.03 < held_out[kind] / (train[kind] + held_out[kind]) < 0.08


def test_every_advert_names_all_its_values(sides: tuple[list[Row], list[Row]]) -> None:
    adverts = [row for side in sides for row in side if row.kind == "advert"]
    for row in adverts:
        listed = row.prompt.partition("：")[2] or row.prompt
        values = [attribute.partition("#")[2] for attribute in listed.split("*")]
        assert values
        assert [value for value in values if value not in row.response] == []


def test_every_sentence_uses_the_quoted_words(sides: tuple[list[Row], list[Row]]) -> None:
    rows = [row for side in sides for row in side if row.kind == "sentence" and "“" in row.prompt]
    for row in rows:
        quoted = [part.partition("”")[0] for part in row.prompt.split("“")[1:]]
        parts = [part for words in quoted for part in words.replace("……", " ").split()]
        joined = [part for part in parts if part not in row.response and "和" not in part]
        assert joined == []


def test_identity_probes_and_the_demo_phrase_are_in_no_row(sides: tuple[list[Row], list[Row]]) -> None:
    everything = [bare(text) for side in sides for row in side for text in texts(row)]
    unwanted = [bare(text) for text in (*corpus.IDENTITY_PROBES, corpus.DEMO_PHRASE)]
    assert len(set(unwanted)) == 21
    assert [text for text in unwanted if any(text in row for row in everything)] == []


def test_the_demo_questions_are_always_trained(sides: tuple[list[Row], list[Row]]) -> None:
    assert set(corpus.ALWAYS_TRAINED) <= {row.group for row in sides[0]}
    assert "你好，你是谁？" in {row.prompt for row in sides[0]}


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_every_row_reads_through_the_reader(folder: Path, name: str) -> None:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    examples = read_examples(folder / name, Data(train=str(folder / name)))
    assert len(examples) == len(lines)
    rounds = [len(json.loads(line)["history"]) for line in lines]
    assert [len(example.messages) for example in examples] == [2 * count + 2 for count in rounds]


def test_the_tokenizer_is_told_as_chatglm3_with_the_control_tokens_after_the_pieces(folder: Path) -> None:
    assert identify(folder).template == "chatglm3"
    loaded = ChatGLMTokenizer.from_pretrained(folder)
    pieces = loaded.sp_model.get_piece_size()
    assert (pieces, len(loaded)) == (tokenizer.VOCAB_SIZE, tokenizer.VOCAB_SIZE + 9)
    assert loaded.convert_tokens_to_ids(["[MASK]", "<|observation|>"]) == [pieces, pieces + 8]
    model = loaded.sp_model
    assert (model.unk_id(), model.bos_id(), model.eos_id()) == (0, 1, 2)


def test_any_text_comes_back_and_no_row_is_long(folder: Path, sides: tuple[list[Row], list[Row]]) -> None:
    model = ChatGLMTokenizer.from_pretrained(folder).sp_model
    for row in (row for side in sides for row in side):
        ids = [model.encode(text) for text in texts(row)]
        assert [model.decode(each) for each in ids] == texts(row)
        assert sum(map(len, ids)) + 4 * len(ids) <= MOST_TOKENS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q: {a}\nA: x\n", "no {a}"),
        ("@slot a = 1:2 | 3\n", "differ in their number of fields"),
        ("@slot a = 1\n@slot a = 2\n", "a is taken"),
        ("A: x\n", "cannot read"),
    ],
)
def test_a_broken_block_is_named(tmp_path: Path, text: str, message: str) -> None:
    import random

    (tmp_path / "blocks.txt").write_text(text, encoding="utf-8")
    slots: dict = {}
    with pytest.raises(ValueError, match=r"blocks.txt:\d: ") as caught:
        for block in read_blocks(tmp_path / "blocks.txt", slots):
            rows_of(block, "chat", slots, random.Random(0))
    assert message in str(caught.value)
