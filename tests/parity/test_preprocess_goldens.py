"""The official scripts' preprocessing, row by row, read from ../shared."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune.data.encode import encode_examples
from glmtune.data.official import find_encoding
from glmtune.data.reader import read_dataset
from glmtune.errors import DataError
from glmtune.migration import migrate_path
from glmtune.recipe import load_recipe
from glmtune.recipe.settings import Data
from glmtune.templates import messages_from_dicts
from glmtune.tokenizers import read_tokenizer
from parity.test_token_goldens import official_folder

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def tokenizers(shared, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("official")
    return {
        name: read_tokenizer(official_folder(shared, folder / name, name))
        for name in ("v1_late", "v2", "v3", "glm4")
    }


def cases(shared, revision: str) -> list[dict[str, Any]]:
    return json.loads((shared / f"goldens/preprocess/{revision}.json").read_text(encoding="utf-8"))["cases"]


def conversation(row: dict[str, Any], arguments: dict[str, Any]) -> list[dict[str, str]]:
    history = row[arguments["history_column"]] if arguments["history_column"] else []
    last = (row[arguments["prompt_column"]], row[arguments["response_column"]])
    return [
        {"role": role, "content": content}
        for pair in [*history, last]
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


@pytest.mark.parametrize("revision", ["v1_late", "v2"])
def test_thudm_rows_are_the_official_ones(shared, tokenizers, revision):
    tokenizer = tokenizers[revision]
    pad = tokenizer.pad_token_id
    for case in cases(shared, revision):
        arguments = case["args"]
        settings = Data(
            encoding="thudm",
            source_prefix=arguments["source_prefix"],
            history_column=arguments["history_column"],
            max_source_tokens=arguments["max_source_length"],
            max_target_tokens=arguments["max_target_length"],
        )
        rows = [messages_from_dicts(conversation(row, arguments)) for row in case["rows"]]
        rows_made = [find_encoding("thudm", tokenizer).train(tokenizer, row, settings) for row in rows]
        rows_made = [row for row in rows_made if row is not None]
        assert len(rows_made) == len(case["train"]["input_ids"])
        for row, ids, labels in zip(
            rows_made, case["train"]["input_ids"], case["train"]["labels"], strict=True
        ):
            length = len(row.input_ids)
            assert row.input_ids == ids[:length]
            assert set(ids[length:]) <= {pad}
            if arguments["ignore_pad_token_for_loss"]:
                assert row.labels == labels[:length]
                assert set(labels[length:]) <= {-100}
            else:  # there, the script learns the pads; what is learned of the answer is the same
                found, truth = ([max(label, pad) for label in made] for made in (row.labels, labels[:length]))
                assert found == truth


@pytest.mark.parametrize("revision", ["v1_late", "v2"])
def test_thudm_questions_are_the_official_ones(shared, tokenizers, revision):
    tokenizer = tokenizers[revision]
    official = find_encoding("thudm", tokenizer)
    for case in cases(shared, revision):
        arguments = case["args"]
        settings = Data(
            encoding="thudm",
            source_prefix=arguments["source_prefix"],
            history_column=arguments["history_column"],
            max_source_tokens=arguments["max_source_length"],
            max_target_tokens=arguments["val_max_target_length"],
        )
        rows = [messages_from_dicts(conversation(row, arguments)) for row in case["rows"]]
        asked = [one for row in rows for one in official.evaluate(tokenizer, row, settings)]
        truth = case["eval"]
        for one, ids, labels in zip(asked, truth["input_ids"], truth["labels"], strict=True):
            assert [tokenizer.pad_token_id] * (len(ids) - len(one.prompt)) + one.prompt == ids
            assert one.reference == [index for index in labels if index != tokenizer.pad_token_id]


def test_real_rows_are_prompts_that_decode_to_their_text(shared, tokenizers):
    tokenizer = tokenizers["v1_late"]
    settings = Data(max_tokens=512, prompt_column="content", response_column="summary")
    read = read_dataset(shared / "data/AdvertiseGen/dev.json", settings)
    examples = read.examples[:50]
    rows = encode_examples(tokenizer, examples, settings).rows
    asks = [tokenizer.control_id("[gMASK]"), tokenizer.control_id("<sop>")]
    for row, example in zip(rows, examples, strict=True):
        ids = row.input_ids.tolist()
        start = ids.index(asks[1]) + 1
        question, answer = (message.content for message in example.messages)
        assert ids[start - 2 : start] == asks
        assert tokenizer.decode(ids[: start - 2]) == normal(tokenizer, question)
        assert tokenizer.decode(ids[start:-1]) == normal(tokenizer, answer)
        assert ids[-1] == tokenizer.end_id


def normal(tokenizer: Any, text: str) -> str:
    return tokenizer.sp_model.normalize(text).replace("▁", " ").removeprefix(" ")


@pytest.mark.parametrize(("revision", "encoding"), [("v3", "chatglm3"), ("glm4", "glm4")])
def test_conversations_are_the_official_ones(shared, tokenizers, revision, encoding):
    for case in cases(shared, revision):
        arguments = case["args"]
        settings = Data(
            encoding=encoding,
            max_source_tokens=arguments["max_input_length"],
            max_target_tokens=arguments["max_output_length"],
            combine=arguments.get("combine", False),
        )
        messages = messages_from_dicts(case["messages"])
        official = find_encoding(encoding, tokenizers[revision])
        if "raises" in case["train"]:
            with pytest.raises(DataError):
                official.train(tokenizers[revision], messages, settings)
        else:
            row = official.train(tokenizers[revision], messages, settings)
            assert [row.input_ids] == case["train"]["input_ids"]
            assert [row.labels] == case["train"]["labels"]
        if "raises" in case["eval"]:
            with pytest.raises(DataError):
                official.evaluate(tokenizers[revision], messages, settings)
        else:
            asked = official.evaluate(tokenizers[revision], messages, settings)
            assert [one.prompt for one in asked] == case["eval"]["input_ids"]
            assert [one.reference for one in asked] == case["eval"]["output_ids"]


# A migrated script or configuration makes the same rows


def write_script(folder: Path, arguments: dict[str, Any]) -> Path:
    """A train.sh with a golden case's flags."""
    names = ("prompt_column", "response_column", "history_column", "source_prefix", "max_source_length",
             "max_target_length", "ignore_pad_token_for_loss")  # fmt: skip
    flags = [f"--{name} {shlex.quote(str(arguments[name]))}" for name in names if arguments[name] is not None]
    text = " \\\n  ".join(
        ["python main.py", "--do_train", "--pre_seq_len 8", *flags, "--train_file train.json"]
    )
    (folder / "train.sh").write_text(text, encoding="utf-8")
    return folder / "train.sh"


@pytest.mark.parametrize("revision", ["v1_late", "v2"])
def test_a_migrated_script_trains_the_official_rows(shared, tokenizers, revision, tmp_path):
    tokenizer = tokenizers[revision]
    for number, case in enumerate(cases(shared, revision)):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = case["args"]
        columns = [arguments[name] for name in ("prompt_column", "response_column")]
        rows = [row for row in case["rows"] if all(row[name] for name in columns)]  # it skips the others
        (folder / "train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        [done] = migrate_path(write_script(folder, arguments), folder / "new.yaml")
        data = load_recipe(done.made, ["model=-"]).data
        assert data.train == folder / "train.json"
        made = encode_examples(tokenizer, read_dataset(data.train, data).examples, data).rows
        official = zip(case["train"]["input_ids"], case["train"]["labels"], strict=True)
        for row, (ids, labels) in zip(made, official, strict=True):
            length = len(row.input_ids)
            assert row.input_ids.tolist() == ids[:length]
            assert set(ids[length:]) <= {tokenizer.pad_token_id}
            if arguments["ignore_pad_token_for_loss"]:
                assert row.labels.tolist() == labels[:length]


def test_a_migrated_configuration_trains_the_official_rows(shared, tokenizers, tmp_path):
    for number, case in enumerate(cases(shared, "v3")):
        if "raises" in case["train"] or not all(message["content"] for message in case["messages"]):
            continue  # an empty answer is an error of its file here
        if set(case["train"]["labels"][0]) == {-100}:
            continue  # nothing is learned of it: here it is left out
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "train.json").write_text(
            json.dumps([{"conversations": case["messages"]}]), encoding="utf-8"
        )
        lengths = {name: case["args"][name] for name in ("max_input_length", "max_output_length")}
        config = {"data_config": {"train_file": "train.json"}, "training_args": {"max_steps": 1}, **lengths}
        (folder / "sft.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        [done] = migrate_path(folder / "sft.yaml", folder / "new.yaml")
        data = load_recipe(done.made, ["model=-"]).data
        [row] = encode_examples(tokenizers["v3"], read_dataset(data.train, data).examples, data).rows
        assert [row.input_ids.tolist()] == case["train"]["input_ids"]
        assert [row.labels.tolist()] == case["train"]["labels"]
