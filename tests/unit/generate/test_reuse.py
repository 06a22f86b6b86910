"""A text that is known already is not computed again, and the answer is the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glmtune.generate import Engine, Request, Sampling, complete
from glmtune.generate.reuse import Reuse, mark_model
from golden import read_golden
from models import lively_model

GREEDY = Sampling(do_sample=False, max_new_tokens=12)
HEADER = [(7 * i) % 90 + 3 for i in range(40)]


class Counted(Engine):
    """Counts the prompt tokens that are computed."""

    computed = 0

    def _join(self, joining: Any) -> Any:
        prefill = self.runner.prefill

        def counted(rows: Any, prompts: Any) -> Any:
            self.computed += sum(len(prompt.ids) - prompt.cached for prompt in prompts)
            return prefill(rows, prompts)

        self.runner.prefill = counted  # type: ignore[method-assign]
        try:
            return super()._join(joining)
        finally:
            self.runner.prefill = prefill  # type: ignore[method-assign]


def ask(engine: Engine, prompt: list[int]) -> list[int]:
    engine.submit(Request(prompt, GREEDY))
    answer = []
    while not engine.is_idle:
        answer += [token.id for token in engine.step()]
    return answer


def prefixed() -> Any:
    model = lively_model()
    torch.manual_seed(1)
    model.attach_prefix(5)
    return model.eval()


def adapted() -> Any:
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules=["query_key_value"], init_lora_weights=False)
    return get_peft_model(lively_model(), settings).eval()


@pytest.mark.parametrize("make", [lively_model, prefixed, adapted])
def test_a_second_turn_goes_on_from_the_first(make: Callable[[], Any]) -> None:
    model = make()
    engine = Counted(model, reused_tokens=1000)
    first = ask(engine, HEADER)
    second = [*HEADER, *first, 5, 6, 7]
    engine.computed = 0
    assert ask(engine, second) == complete(model, [second], GREEDY, stop_ids=[])[0]
    assert engine.computed == 1 + 3  # the last token of an answer has not been read yet


@pytest.mark.parametrize("make", [lively_model, prefixed, adapted])
def test_the_beginning_that_prompts_share_is_computed_once(make: Callable[[], Any]) -> None:
    model = make()
    asked = [[*HEADER, *range(5, 5 + i)] for i in range(1, 5)]
    engine = Counted(model)
    engine.remember(HEADER)
    assert [ask(engine, prompt) for prompt in asked] == [
        complete(model, [prompt], GREEDY, stop_ids=[])[0] for prompt in asked
    ]
    assert engine.computed == 1 + 2 + 3 + 4
    assert complete(model, asked, GREEDY, stop_ids=[]) == [ask(engine, prompt) for prompt in asked]


def test_the_same_prompt_again_computes_its_last_token_alone() -> None:
    engine = Counted(lively_model(), reused_tokens=1000)
    first = ask(engine, HEADER)
    engine.computed = 0
    assert ask(engine, HEADER) == first
    assert engine.computed == 1


def test_a_prefix_lms_context_is_reused_whole_or_not_at_all() -> None:
    model = read_golden("v1_late").model
    mask, bos = model.config.mask_ids[1], model.config.bos_token_id
    context = [3 + i % 20 for i in range(40)]
    engine = Counted(model, reused_tokens=1000)
    first = ask(engine, [*context, mask, bos])
    for prompt, computed in (([*context, mask, bos], 1), ([*context, 9, mask, bos], 43)):
        engine.computed = 0
        assert ask(engine, prompt) == complete(model, [prompt], GREEDY, stop_ids=[])[0]
        assert engine.computed == computed
    again = [*context, mask, bos, *first[:4]]
    engine.computed = 0
    assert ask(engine, again) == complete(model, [again], GREEDY, stop_ids=[])[0]
    assert engine.computed == 1


@torch.no_grad()
def test_what_other_weights_have_made_is_forgotten() -> None:
    model = lively_model()
    engine = Engine(model, reused_tokens=1000)
    ask(engine, HEADER)
    next(model.parameters()).mul_(1.5)
    assert ask(engine, HEADER) == complete(model, [HEADER], GREEDY, stop_ids=[])[0]


def test_what_another_adapter_has_made_is_forgotten() -> None:
    model = adapted()
    engine = Engine(model, reused_tokens=1000)
    tuned = ask(engine, HEADER)
    with model.disable_adapter():
        assert ask(engine, HEADER) == complete(model, [HEADER], GREEDY, stop_ids=[])[0] != tuned
    assert ask(engine, HEADER) == tuned


@pytest.mark.parametrize("switch", ["off", "scaled"])
def test_a_text_that_was_read_by_a_model_as_it_was_then_is_not_taken_for_one_of_the_model_now(
    switch: str,
) -> None:
    model = adapted()
    expected: dict[bool, list[int]] = {}
    for is_switched in (False, True):
        with switched(model, switch) if is_switched else nullcontext():
            expected[is_switched] = complete(model, [HEADER], GREEDY, stop_ids=[])[0]
    engine = Engine(model, reused_tokens=1000)
    engine.submit(Request(HEADER, GREEDY))
    engine.step()
    with switched(model, switch):
        while not engine.is_idle:
            engine.step()
        assert ask(engine, HEADER) == expected[True] != expected[False]
    assert ask(engine, HEADER) == expected[False]


@contextmanager
def switched(model: Any, how: str) -> Iterator[None]:
    layers = [part for part in model.modules() if hasattr(part, "set_scale")]
    if how == "off":
        with model.disable_adapter():
            yield
        return
    for part in layers:
        part.set_scale("default", 9)
    yield
    for part in layers:
        part.set_scale("default", 1)


def test_a_remembered_text_is_computed_and_held_once_until_it_is_let_go() -> None:
    engine = Engine(lively_model())
    for text in (HEADER, HEADER, HEADER[:20]):
        engine.remember(text)
    assert [text.ids for text in engine.reuse._texts] == [HEADER]
    engine.forget()
    assert engine.reuse.find(HEADER) == (0, [])


def test_a_text_that_cannot_be_kept_leaves_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    model = lively_model()
    engine = Engine(model)
    monkeypatch.setattr(engine.reuse, "keep", fail)
    with pytest.raises(MemoryError):
        engine.remember(HEADER)
    assert engine.rows.num_bytes == 0
    assert ask(engine, HEADER) == complete(model, [HEADER], GREEDY, stop_ids=[])[0]


def test_the_text_longest_unused_goes_first() -> None:
    model, reuse = torch.nn.Linear(1, 1), Reuse(6)
    mark = mark_model(model)
    for ids in ([1, 2, 3], [4, 5]):
        reuse.keep(model, ids, [], mark=mark)
    assert reuse.find([1, 2, 9])[0] == 2
    reuse.keep(model, [6, 7], [], mark=mark)
    assert [reuse.find(ids)[0] for ids in ([1, 2, 3], [4, 5], [6, 7])] == [3, 0, 2]
    reuse.keep(model, [1, 2, 3, 4], [], mark=mark)
    assert reuse.num_held == 6
