"""Answers that follow a JSON schema, in every chat format and from any scores."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import examples
from glmtune.errors import ConfigError
from glmtune.generate.grammar import Vocabulary
from glmtune.generate.sampling import Draw, Sampling, draw_tokens
from glmtune.templates import TEMPLATES
from glmtune.tokenizers.protocol import Tokenizer
from tiny import tiny_tokenizer

FORMS = [name for name, row in TEMPLATES.items() if not row.begins_thought]
names = st.sampled_from(["city", "天气", "a b", 'q"', "n"])
leaves = st.sampled_from(
    [
        {"type": "integer", "minimum": 3, "maximum": 12},
        {"type": "number", "minimum": -5, "maximum": 5},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"},
        {"enum": ["北京", 2, None]},
        {"const": {"x": 1}},
    ]
)


def objects_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, inner, min_size=1, max_size=3).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": sorted(fields)[:2],
            "additionalProperties": False,
        }
    )


schemas = objects_of(
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            objects_of(inner),
            inner.map(lambda each: {"type": "array", "items": each, "minItems": 1, "maxItems": 2}),
        ),
        max_leaves=3,
    )
)


def written(tokenizer: Tokenizer, vocabulary: Vocabulary, schema: Any, seed: int) -> str:
    """The answer that random scores give, as a client gets it."""
    random = torch.Generator().manual_seed(seed)
    limit = vocabulary.grammar(schema)
    draw = Draw(Sampling(do_sample=False), [1], device=torch.device("cpu"), limit=limit)
    ids: list[int] = []
    stops = {*tokenizer.stop_ids, tokenizer.end_id}
    while len(ids) < 3000:
        # more scores than tokens, as models pad their vocabulary
        (token,) = draw_tokens(torch.randn(1, len(tokenizer) + 7, generator=random), [draw])
        if token in stops:
            return str(tokenizer.chat_format.shown(tokenizer.decode(ids)))
        limit.take(token)
        ids.append(token)
    raise AssertionError("no end")


@pytest.mark.parametrize("template", FORMS)
def test_any_scores_write_an_answer_that_the_schema_allows(template: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, template)
    vocabulary = Vocabulary(tokenizer, {*tokenizer.stop_ids, tokenizer.end_id})

    @settings(max_examples=examples(15))
    @given(schemas, st.integers(0, 2**20))
    def check(schema: Any, seed: int) -> None:
        answer = written(tokenizer, vocabulary, schema, seed)
        answer = answer.rpartition("</think>")[2]
        jsonschema_rs.validate(schema, json.loads(answer))

    check()


def test_a_schema_that_cannot_be_followed_is_refused_by_its_word(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "glm4")
    vocabulary = Vocabulary(tokenizer, tokenizer.stop_ids)
    with pytest.raises(ConfigError, match="not"):
        vocabulary.grammar({"type": "object", "properties": {"a": {"not": {}}}})


def test_a_format_that_begins_with_a_thought_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "glmz1")
    with pytest.raises(ConfigError, match="thought"):
        Vocabulary(tokenizer, tokenizer.stop_ids)
