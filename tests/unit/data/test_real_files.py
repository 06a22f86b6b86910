"""The public data sets load and encode with the genuine tokenizers; rows cut or left out are counted."""

import math
from collections import Counter
from typing import Any

import pytest
import torch

from glmtune.data.batches import collate
from glmtune.data.encode import encode_examples
from glmtune.data.reader import read_dataset
from glmtune.objectives import SftObjective
from glmtune.recipe.settings import Data
from glmtune.tokenizers import read_tokenizer
from models import tiny_model
from parity.test_token_goldens import official_folder

pytestmark = pytest.mark.shared

FILES = {
    "llamafactory/glaive_toolcall_zh_demo.json": ("sharegpt", 300, []),
    "sharegpt_zh_1K_format.jsonl": (
        "sharegpt",
        999,
        [
            "dialogues cut after their last answer: 6",
            "dialogues without any answer left out: 1",
            "empty questions kept: 17",
        ],
    ),
    "llamafactory/alpaca_zh_demo.json": ("alpaca", 1000, []),
    "llamafactory/alpaca_en_demo.json": ("alpaca", 999, []),
    "self_cognition.json": ("alpaca", 80, []),
    "llamafactory/identity.json": ("alpaca", 91, []),
    "chat_history_car_repair.jsonl": ("prompt_response", 3, []),
    "oaast_sft_zh.json": ("alpaca", 689, []),
}
LONG = Data(max_tokens=2048, overlong="cut_any")


@pytest.fixture(scope="module")
def tokenizers(shared, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("official")
    return {name: read_tokenizer(official_folder(shared, folder / name, name)) for name in ("v3", "glm4")}


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_read_and_what_was_left_out_is_counted(shared, name):
    dataset = read_dataset(shared / "data" / name, Data())
    assert (dataset.format, len(dataset.examples), dataset.notes()) == FILES[name]


@pytest.mark.parametrize("model", ["v3", "glm4"])
@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_encoded_with_every_row_counted(shared, tokenizers, name, model):
    examples = read_dataset(shared / "data" / name, Data()).examples[:60]
    encoded = encode_examples(tokenizers[model], examples, LONG)
    assert len(encoded.rows) + encoded.report.rows_dropped == encoded.report.rows == len(examples)
    assert encoded.report.rows_dropped <= 2
    assert all(len(row.input_ids) <= 2048 and (row.labels != -100).any() for row in encoded.rows)


def test_real_tool_calls_become_calls_of_both_models(shared, tokenizers):
    examples = read_dataset(shared / "data/llamafactory/glaive_toolcall_zh_demo.json", Data()).examples
    counts = Counter(
        "call" if message.calls else message.role for example in examples for message in example.messages
    )
    assert counts == {"user": 722, "assistant": 724, "observation": 218, "call": 216, "system": 200}
    called = next(e for e in examples if any(call.arguments for m in e.messages for call in m.calls))
    learned = {
        name: tokenizers[name].decode([i for i in row.labels.tolist() if i != -100])
        for name in tokenizers
        for row in encode_examples(tokenizers[name], [called], LONG).rows
    }
    assert "```python\ntool_call(" in learned["v3"]
    assert '{"' in learned["glm4"]
    assert "tool_call(" not in learned["glm4"]


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_trains_a_step(shared, tokenizers, name):
    """Each file's first rows through the loss and an optimizer step of a tiny model: the loss falls."""
    tokenizer = tokenizers["v3"]
    examples = read_dataset(shared / "data" / name, Data()).examples[:2]
    rows = encode_examples(tokenizer, examples, Data(max_tokens=256, overlong="cut_any")).rows
    model = tiny_model(padded_vocab_size=len(tokenizer), seq_length=256)
    objective, batch = SftObjective(model), collate(rows, tokenizer.pad_token_id)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        loss = objective(batch) / objective.weight(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0] < 2 * math.log(len(tokenizer))
