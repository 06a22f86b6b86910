"""Answers to the rows of a file."""

import json

import pytest

from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.data.prompts import encode_prompts
from glmtune.evaluation.predictions import EvaluationRow, predict
from glmtune.recipe.settings import Data
from glmtune.templates import Message
from glmtune.tokenizers import read_tokenizer
from models import Scripted
from tiny import tiny_json


@pytest.mark.parametrize("template", ["glmz1", "glm45"])
def test_a_thought_in_front_of_an_answer_is_not_scored(template, tmp_path):
    model_type = {"glmz1": "glm4", "glm45": "glm4_moe"}[template]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = read_tokenizer(tiny_json(tmp_path, template), template)
    thought = Message("assistant", "<think>早上问好。</think>早上好！")
    rows = [Example((Message("user", "早"), thought), "test.jsonl:1")]
    (learned,) = encode_examples(tokenizer, rows, Data()).rows
    (prompt,), _ = encode_prompts(tokenizer, rows, Data())
    model = Scripted(learned.labels[learned.labels >= 0].tolist(), len(tokenizer))
    asked = [EvaluationRow(0, prompt.ids, prompt.reference)]
    (prediction,) = predict(model, tokenizer, asked, max_new_tokens=64, batch_size=1)
    assert prediction.predict == prediction.labels == "早上好！"
