"""Answers to the rows of a file."""

import json

import pytest

from glmtune.data.encode import encode_examples
from glmtune.data.example import Example
from glmtune.data.prompts import encode_prompts
from glmtune.evaluation.predictions import EvaluationRow, Prediction, predict, score_all, score_turns
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


def test_a_turn_is_counted_by_the_users_messages_before_the_last_answer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glm4"}))
    tokenizer = read_tokenizer(tiny_json(tmp_path, "glm4"), "glm4")
    talk = [Message(role, "早") for role in ("system", *["user", "assistant"] * 3, "user")]
    rows = [Example(tuple(talk[:end]), "test.jsonl:1") for end in (3, 5, 7, 8)]
    prompts, _ = encode_prompts(tokenizer, rows, Data())
    assert [prompt.turn for prompt in prompts] == [1, 2, 3, 3]  # the last question has no answer


def test_scores_of_turns_are_those_of_their_rows_alone_and_their_mean_is_the_whole():
    texts = [("早上好", "早上好"), ("晚上好", "早上好"), ("你好", "早上好"), ("早", "早")]
    told = [Prediction(row, *pair, stopped=row != 1) for row, pair in enumerate(texts)]
    turns = score_turns(told, {0: 2, 1: 1, 2: 2, 3: 1})
    assert turns == [
        {"turn": 1, **score_all([told[1], told[3]])},
        {"turn": 2, **score_all([told[0], told[2]])},
    ]
    whole = score_all(told)["thudm"]
    for name in whole.keys() - {"num_empty"}:
        assert whole[name] == pytest.approx(sum(of["thudm"][name] for of in turns) / 2)
    assert not score_turns(told, dict.fromkeys(range(4), 3))
