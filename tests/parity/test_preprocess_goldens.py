"""The official scripts' preprocessing, row by row, read from ../shared."""

import json
from typing import Any

import pytest

from glmtune.data.official import ENCODINGS
from glmtune.errors import DataError
from glmtune.recipe.settings import Data
from glmtune.templates import messages_from_dicts
from glmtune.tokenizers import load_tokenizer
from parity.test_token_goldens import official_folder

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def tokenizers(shared, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("official")
    return {
        name: load_tokenizer(official_folder(shared, folder / name, name)) for name in ("v2", "v3", "glm4")
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


def test_thudm_rows_are_the_official_ones(shared, tokenizers):
    for case in cases(shared, "v2"):
        arguments = case["args"]
        settings = Data(
            encoding="thudm",
            source_prefix=arguments["source_prefix"],
            max_source_tokens=arguments["max_source_length"],
            max_target_tokens=arguments["max_target_length"],
        )
        rows = [messages_from_dicts(conversation(row, arguments)) for row in case["rows"]]
        made = [ENCODINGS["thudm"].train(tokenizers["v2"], row, settings) for row in rows]
        made = [row for row in made if row is not None]
        assert len(made) == len(case["train"]["input_ids"])
        for row, ids, labels in zip(made, case["train"]["input_ids"], case["train"]["labels"], strict=True):
            length = len(row.input_ids)
            assert row.input_ids == ids[:length]
            assert set(ids[length:]) <= {0}
            if arguments["ignore_pad_token_for_loss"]:
                assert row.labels == labels[:length]
                assert set(labels[length:]) <= {-100}
            else:  # there, the script learns the pads; what is learned of the answer is the same
                assert [max(label, 0) for label in row.labels] == labels[:length]


def test_thudm_questions_are_the_official_ones(shared, tokenizers):
    for case in cases(shared, "v2"):
        arguments = case["args"]
        settings = Data(
            encoding="thudm",
            source_prefix=arguments["source_prefix"],
            max_source_tokens=arguments["max_source_length"],
            max_target_tokens=arguments["val_max_target_length"],
        )
        rows = [messages_from_dicts(conversation(row, arguments)) for row in case["rows"]]
        asked = [one for row in rows for one in ENCODINGS["thudm"].evaluate(tokenizers["v2"], row, settings)]
        truth = case["eval"]
        for one, ids, mask, labels in zip(
            asked, truth["input_ids"], truth["attention_mask"], truth["labels"], strict=True
        ):
            assert one.prompt == [index for index, real in zip(ids, mask, strict=True) if real]
            assert one.reference == labels


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
        official = ENCODINGS[encoding]
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
