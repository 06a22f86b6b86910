"""Requests that come and go: no answer depends on another, and what has ended holds no memory."""

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glmtune.generate.kv_cache as rows_module
import glmtune.generate.sampling as sampling_module
from fuzz import examples
from glmtune.errors import AnswerError, ConfigError, DataError
from glmtune.generate import Engine, Request, Sampling, decode
from glmtune.generate.queue import Line, default_max_held_tokens
from glmtune.generate.requests import Answer
from glmtune.generate.sampling import Draw
from golden import read_golden
from models import VOCABULARY, lively_model

GREEDY = Sampling(do_sample=False, max_new_tokens=6)
WAYS = (
    GREEDY,
    Sampling(do_sample=False, max_new_tokens=9, repetition_penalty=1.5),
    Sampling(temperature=1.0, top_p=0.9, max_new_tokens=5, seed=3),
    Sampling(temperature=0.7, top_k=9, top_p=1.0, max_new_tokens=7, seed=4, repetition_penalty=1.2),
)
MODEL = lively_model()

prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=70)
requests = st.builds(Request, prompts, st.sampled_from(WAYS), st.sampled_from([(), (4, 40), (7,)]))


def alone(request: Request) -> list[int]:
    engine = Engine(MODEL)
    engine.submit(request)
    return [token.id for token in finish(engine)]


def finish(engine: Engine) -> list:
    tokens = []
    while not engine.is_idle:
        tokens += engine.step()
    return tokens


def requests_of(*lengths: int) -> list[Request]:
    return [Request([i % 90 + 1 for i in range(length)], GREEDY) for length in lengths]


@given(
    arriving=st.lists(st.tuples(st.integers(0, 4), requests), min_size=1, max_size=6),
    max_rows=st.integers(1, 4),
    max_prefill_tokens=st.sampled_from([1, 50, 4096]),
    max_held_tokens=st.sampled_from([1, 90, 160, 10_000]),
)
@settings(
    max_examples=examples(25), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_an_answer_is_the_same_whatever_else_arrives_and_when(
    arriving: Sequence[tuple[int, Request]], max_rows: int, max_prefill_tokens: int, max_held_tokens: int
) -> None:
    engine = Engine(
        MODEL, max_rows=max_rows, max_prefill_tokens=max_prefill_tokens, max_held_tokens=max_held_tokens
    )
    asked: dict[int, Request] = {}
    answers: dict[int, list[int]] = {}

    def step() -> None:
        for token in engine.step():
            answers.setdefault(token.request, []).append(token.id)
        lengths = engine.rows.lengths
        assert len(lengths) <= max_rows
        assert len(lengths) <= 1 or len(lengths) * max(lengths) <= max_held_tokens

    for wait, request in arriving:
        for _ in range(wait):
            step()
        asked[engine.submit(request)] = request
    while not engine.is_idle:
        step()
    assert answers == {number: alone(request) for number, request in asked.items()}
    assert list(answers) == list(asked)  # none has overtaken another


def test_rows_of_4096_tokens_join_as_they_come_and_of_long_ones_only_as_many_as_fit() -> None:
    def joining(num_tokens: int, max_rows: int) -> int:
        line = Line(max_rows, 10**9, default_max_held_tokens(max_rows))
        for request in requests_of(*[1] * (max_rows + 1)):
            line.waiting.append(Answer(0, request, Draw(GREEDY, [1], device=torch.device("cpu")), num_tokens))
        return len(line.first([]))

    assert [joining(4096, rows) for rows in (1, 8, 64, 100)] == [1, 8, 64, 100]
    assert [joining(32_768, rows) for rows in (1, 8, 64)] == [1, 8, 8]
    assert joining(10**9, 64) == 1


def test_a_row_that_ends_makes_place_for_one_that_waits_in_the_next_step() -> None:
    engine = Engine(MODEL, max_rows=1)
    for request in requests_of(3, 5):
        engine.submit(request)
    tokens = [engine.step() for _ in range(12)]
    assert [[token.request for token in step] for step in tokens] == [[0]] * 6 + [[1]] * 6
    assert [step[0].is_last for step in tokens] == ([False] * 5 + [True]) * 2
    assert engine.is_idle


def test_a_stop_token_is_the_last_of_its_answer() -> None:
    free = alone(Request([1, 2, 3], GREEDY))
    end = free.index(free[2])
    assert alone(Request([1, 2, 3], GREEDY, [free[2]])) == free[: end + 1]


def test_what_has_ended_holds_no_memory() -> None:
    engine = Engine(MODEL)
    for request in requests_of(3, 200):
        engine.submit(request)
    engine.step()
    assert engine.rows.num_bytes > 0
    finish(engine)
    assert engine.rows.num_bytes == 0


def test_an_answer_that_a_stop_token_ends_frees_its_memory_while_another_goes_on() -> None:
    long, short = requests_of(200, 5)
    stop = alone(long)[1]
    engine = Engine(MODEL)
    engine.submit(Request(long.prompt, GREEDY, [stop]))
    engine.submit(short)
    engine.step()
    room = engine.rows.num_bytes
    assert [token.is_last for token in engine.step()] == [True, False]
    assert engine.rows.num_bytes <= room // 4  # one of two rows, and a quarter of its columns
    finish(engine)
    assert engine.rows.num_bytes == 0


def test_keys_and_values_are_gone_when_nothing_is_answered_any_more() -> None:
    engine = Engine(MODEL)
    for request in requests_of(3, 200, 50):
        engine.submit(request)
    engine.step()
    held = [weakref.ref(part) for layer in engine.rows.layers for part in layer]
    assert len(held) == 2 * MODEL.config.num_layers
    for number in range(3):
        engine.cancel(number)
    assert engine.is_idle
    assert not [part for part in held if part() is not None]


def test_an_answer_that_nobody_waits_for_leaves_the_engine_empty() -> None:
    engine = Engine(MODEL)
    answers = decode(MODEL, [[1, 2, 3], [4, 5]], GREEDY, stop_ids=[], engine=engine)
    next(answers)
    answers.close()
    assert engine.is_idle
    assert engine.rows.num_bytes == 0


def test_a_cancelled_request_frees_its_memory_and_leaves_the_others_as_they_are() -> None:
    engine = Engine(MODEL)
    numbers = [engine.submit(request) for request in requests_of(3, 200, 5)]
    answers: list[int] = [token.id for token in engine.step() if token.request == numbers[2]]
    before = engine.rows.num_bytes
    engine.cancel(numbers[1])
    assert engine.rows.num_bytes <= before // 4  # two short rows of three, and the columns of the long one
    tokens = engine.step()
    assert {token.request for token in tokens} == {numbers[0], numbers[2]}
    answers += [token.id for token in tokens + finish(engine) if token.request == numbers[2]]
    assert answers == alone(requests_of(5)[0])


def test_a_request_that_waits_can_be_cancelled() -> None:
    engine = Engine(MODEL, max_rows=1)
    numbers = [engine.submit(request) for request in requests_of(3, 4)]
    engine.step()
    engine.cancel(numbers[1])
    engine.cancel(12345)
    assert {token.request for token in finish(engine)} == {numbers[0]}


def test_room_grows_with_the_answer_and_never_far_beyond_it() -> None:
    engine = Engine(MODEL)
    engine.submit(Request([1, 2, 3], Sampling(do_sample=False, max_new_tokens=100)))
    sizes = []
    while not engine.is_idle:
        engine.step()
        sizes.append(engine.rows.room)
    assert set(sizes) == {(1, 64), (1, 128), (0, 0)}


def test_rows_get_the_same_random_numbers_in_a_batch_as_alone() -> None:
    ways = [Sampling(temperature=2.0, top_p=1.0, max_new_tokens=8, seed=seed) for seed in (1, 2, 1)]
    engine = Engine(MODEL)
    for way in ways:
        engine.submit(Request([1, 2, 3], way))
    answers: list[list[int]] = [[], [], []]
    for token in finish(engine):
        answers[token.request].append(token.id)
    assert answers[0] == answers[2] != answers[1]


def test_an_unused_column_is_finite() -> None:
    """Else a masked column would spoil a sum: 0 times NaN is NaN."""
    engine = Engine(MODEL)
    for request in requests_of(3, 60):
        engine.submit(request)
    engine.step()
    assert all(bool(torch.isfinite(part).all()) for layer in engine.rows.layers for part in layer)


def test_a_prompt_whose_positions_cannot_be_told_is_refused_at_once() -> None:
    engine = Engine(read_golden("v1_late").model)
    with pytest.raises(DataError, match="<sop>"):
        engine.submit(Request([20, 21, 22]))
    assert engine.is_idle


def failing_once(monkeypatch: pytest.MonkeyPatch, target: object, name: str, *, after: int = 0) -> None:
    """The call after so many more fails when its work is done; all others do what they did."""
    work, calls = getattr(target, name), count()

    def fail(*args: object, **kwargs: object) -> object:
        done = work(*args, **kwargs)
        if next(calls) == after:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(target, name, fail)


SEEDED = [Request(request.prompt, way) for request, way in zip(requests_of(3, 9, 5), WAYS[1:], strict=True)]


FAILING: tuple[tuple[str, Callable[[Engine], object]], ...] = (
    ("step", lambda engine: engine.runner),
    ("prefill", lambda engine: engine.runner),
    ("advance_positions", lambda engine: engine.runner),
    ("write", lambda engine: type(engine.rows)),
    ("remove", lambda engine: type(engine.rows)),
    ("keep", lambda engine: engine.reuse),
    ("_room_for", lambda _: rows_module),
    ("_draw", lambda _: sampling_module),
)


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize(("name", "owner"), FAILING)
def test_a_step_that_fails_anywhere_loses_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, owner: Callable[[Engine], object], after: int
) -> None:
    asked = [*SEEDED, SEEDED[0]]  # the last one's prompt is known from the first
    expected = [alone(request) for request in asked]
    engine = Engine(MODEL, max_rows=2, reused_tokens=100)
    failing_once(monkeypatch, owner(engine), name, after=after)
    answers: list[list[int]] = [[] for _ in asked]
    for request in asked:
        engine.submit(request)
    while not engine.is_idle:
        with suppress(KeyboardInterrupt):
            for token in engine.step():
                answers[token.request].append(token.id)
    assert answers == expected
    assert engine.rows.num_bytes == 0


def test_an_interrupted_prompt_leaves_no_row_behind() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    engine = Engine(MODEL)
    first, second = requests_of(3, 5)
    engine.submit(first)
    answers = {0: [token.id for token in engine.step()], engine.submit(second): []}
    hook = MODEL.transformer.encoder.layers[1].register_forward_pre_hook(
        lambda _, inputs: interrupt() if inputs[0].shape[1] > 1 else None
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.step()
    hook.remove()
    assert caught.value.__notes__ == ["while the prompts of requests 1 were read"]
    for token in finish(engine):
        answers[token.request].append(token.id)
    assert answers == {0: alone(first), 1: alone(second)}
    assert engine.rows.num_bytes == 0


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_without_finite_scores_is_given_up_by_name_and_the_others_go_on(way: Sampling) -> None:
    """Its keys and values are NaN: nothing of them may reach the row that takes its place."""
    model = lively_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = math.nan
    good = [Request(range(1, length), way) for length in (60, 40, 9)]
    asked = [good[0], Request([*range(1, 50), 77], way), *good[1:]]
    engine = Engine(model, max_rows=3)
    numbers = [engine.submit(request) for request in asked]
    answers: dict[int, list[int]] = {number: [] for number in numbers}
    with pytest.raises(AnswerError, match=f"request {numbers[1]}: ") as caught:
        engine.step()
    assert caught.value.requests == (numbers[1],)
    for token in finish(engine):
        answers[token.request].append(token.id)
    assert list(answers.values()) == [alone(good[0]), [], alone(good[1]), alone(good[2])]


@pytest.mark.parametrize("ids", [[], [1, VOCABULARY], [-1, 1], [1.5], ["a"], 5])
def test_a_prompt_of_other_than_the_models_ids_is_refused_at_once(ids: Any) -> None:
    engine = Engine(MODEL)
    for refuse in (lambda: engine.submit(Request(ids)), lambda: engine.remember(ids)):
        with pytest.raises(DataError, match="prompt: "):
            refuse()
    assert engine.is_idle
    assert engine.rows.num_bytes == 0


@pytest.mark.parametrize("stop_ids", [2, None, "ab", [2.5]])
def test_stop_ids_that_are_none_are_refused_at_once(stop_ids: Any) -> None:
    engine = Engine(MODEL)
    with pytest.raises(ConfigError, match="stop_ids: "):
        engine.submit(Request([1], stop_ids=stop_ids))
    assert engine.is_idle


def test_a_prompt_and_stop_ids_that_change_afterwards_change_no_answer() -> None:
    expected = alone(Request([1, 2, 3], GREEDY))
    prompt, stop_ids = [1, 2, 3], []
    engine = Engine(MODEL, reused_tokens=1000)
    engine.submit(Request(prompt, GREEDY, stop_ids))
    answer = []
    while not engine.is_idle:
        answer += [token.id for token in engine.step()]
        prompt.append(answer[-1])
        stop_ids.append(answer[-1])
    assert answer == expected
    assert engine.reuse.find([1, 2, 3, *expected])[0] == 3 + len(expected) - 1
