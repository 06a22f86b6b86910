"""Lanes: each answer as alone, and memory for the tokens that are held, not for rows times the longest."""

import random

import pytest

from glmtune.errors import AnswerError, ConfigError
from glmtune.generate import Engine, Request, Sampling
from glmtune.generate.lanes import Lanes
from models import lively_model

MODEL = lively_model()


def requests_of(*lengths: int, max_new_tokens: int = 6) -> list[Request]:
    draw = random.Random(0)
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    return [Request([draw.randrange(3, 60) for _ in range(length)], sampling) for length in lengths]


def finish(engine: Engine | Lanes) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    while not engine.is_idle:
        for token in engine.step():
            answers.setdefault(token.request, []).append(token.id)
    return answers


def alone(request: Request) -> list[int]:
    engine = Engine(MODEL)
    engine.submit(request)
    return next(iter(finish(engine).values()))


def test_64_short_rows_beside_one_of_8k_hold_64_short_rows_and_one_long_one() -> None:
    asked = requests_of(8000, *[8] * 64)
    lanes = Lanes(MODEL, max_rows=65)
    numbers = [lanes.submit(request) for request in asked]
    answers = {number: [] for number in numbers}
    for _ in range(2):  # the short prompts are read in two steps
        for token in lanes.step():
            answers[token.request].append(token.id)
    assert lanes.num_rows == 65  # all at once
    assert lanes.num_held_tokens <= 2 * (8192 + 64 * 64)  # where one rectangle would be 65 x 8,064
    for number, ids in finish(lanes).items():
        answers[number] += ids
    for number in (1, 64):
        assert answers[numbers[number]] == alone(asked[number])
    assert lanes.num_held_tokens == 0


def test_answers_of_every_length_are_those_of_each_alone() -> None:
    asked = requests_of(3, 100, 40, 5, 9, 70, 33, 2)
    lanes = Lanes(MODEL, lengths=(16, 64), max_rows=2, max_held_tokens=400, reused_tokens=200)
    numbers = [lanes.submit(request) for request in asked]
    answers = finish(lanes)
    assert [answers[number] for number in numbers] == [alone(request) for request in asked]


def test_short_requests_do_not_wait_behind_a_long_one() -> None:
    lanes = Lanes(MODEL, lengths=(16,), max_rows=1, max_held_tokens=10_000)
    waiting = [lanes.submit(request) for request in requests_of(50, 60)]
    short = lanes.submit(requests_of(4)[0])
    assert {token.request for token in lanes.step()} == {waiting[0], short}


def test_a_cancelled_request_is_gone_before_the_next_step() -> None:
    lanes = Lanes(MODEL, lengths=(16,))
    numbers = [lanes.submit(request) for request in requests_of(4, 50, 5)]
    lanes.step()
    lanes.cancel(numbers[1])
    assert {token.request for token in lanes.step()} == {numbers[0], numbers[2]}
    assert lanes.num_rows == 2


def test_a_lane_that_fails_loses_no_token_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests_of(4, 50)
    lanes = Lanes(MODEL, lengths=(16,))
    numbers = [lanes.submit(request) for request in asked]
    failing = lanes._engines[1]
    step = failing.step
    failures = iter([AnswerError("not finite", requests=(99,), hint="none")])

    def fail_once() -> object:
        for error in failures:
            raise error
        return step()

    monkeypatch.setattr(failing, "step", fail_once)
    with pytest.raises(AnswerError):
        lanes.step()
    answers = finish(lanes)
    assert [answers[number] for number in numbers] == [alone(request) for request in asked]


def test_a_bound_under_which_a_lane_could_hold_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_held_tokens: 2 for 3 lanes"):
        Lanes(MODEL, max_held_tokens=2)
