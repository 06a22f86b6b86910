"""`/v1/completions`: texts gone on with."""

from typing import Any

import openai
import pytest

from glmtune import load_model, load_tokenizer
from glmtune.generate import Sampling, complete
from serving import Served

TEXTS = ["今天天气", "The weather"]


def ask(served: Served, **settings: Any) -> Any:
    return served.openai().completions.create(
        **{"model": "base", "prompt": TEXTS, "temperature": 0, "max_tokens": 12, **settings}
    )


def test_a_text_is_gone_on_with_as_by_the_engine_given_as_text_or_as_ids(served: Served) -> None:
    tokenizer = load_tokenizer(served.folder / "base")
    prompts = [[*tokenizer.get_prefix_tokens(), *tokenizer.encode_plain(text)] for text in TEXTS]
    stop_ids = {*tokenizer.stop_ids, tokenizer.end_id}
    greedy = Sampling(do_sample=False, max_new_tokens=12)
    answers = complete(load_model(served.folder / "base", dtype="fp32"), prompts, greedy, stop_ids=stop_ids)
    expected = [tokenizer.decode([i for i in ids if i not in stop_ids]) for ids in answers]
    assert [choice.text for choice in ask(served).choices] == expected
    assert [choice.text for choice in ask(served, prompt=prompts).choices] == expected
    assert ask(served, prompt=prompts[1]).choices[0].text == expected[1]
    streamed = ["", ""]
    for chunk in ask(served, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == expected


def test_log_probabilities_are_listed_by_token(served: Served) -> None:
    found = ask(served, prompt=TEXTS[0], logprobs=2, max_tokens=4).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
    assert all(
        max(likely.values()) >= own
        for likely, own in zip(found.top_logprobs, found.token_logprobs, strict=True)
    )


@pytest.mark.parametrize("settings", [{"echo": True}, {"best_of": 2}, {"suffix": "x"}, {"prompt": [[]]}])
def test_what_is_not_supported_is_refused(served: Served, settings: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(served, **settings)


def test_ids_outside_the_vocabulary_are_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="99999"):
        ask(served, prompt=[5, 99999])
    served.wait(rows=0)
