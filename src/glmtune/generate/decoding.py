"""Several prompts answered by an engine of their own, or by one that goes on from earlier answers."""

from collections.abc import Collection, Iterator, Sequence

from glmtune.errors import ConfigError
from glmtune.generate.engine import Engine
from glmtune.generate.queue import MAX_ROWS
from glmtune.generate.requests import Request
from glmtune.generate.reuse import count_shared
from glmtune.generate.sampling import Sampling
from glmtune.models.protocol import CausalLM

SHARED_TOKENS = 32
"""Least common beginning of several prompts that is worth a pass of its own."""


def decode(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    max_rows: int = MAX_ROWS,
    engine: Engine | None = None,
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, the new (row, token id) pairs; the stop token that ends a row is among them.

    At most `max_rows` are answered at once, and the next prompt joins as soon as one of them has ended. What
    all prompts begin with is computed once. `engine`: one of this model's that goes on from earlier answers;
    `ConfigError` if it is not idle, for it answers others' requests then.
    """
    if engine and not engine.is_idle:
        raise ConfigError(
            "engine: still answering", hint="finish or close() the earlier answer, or cancel it"
        )
    rows: dict[int, int] = {}
    was_training = model.training
    try:
        if was_training:
            model.eval()
        engine = engine or _build_engine(model, prompts, max_rows)
        engine.tell_length([len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):
            rows[engine.submit(Request(prompt, sampling, stop_ids))] = row
        while not engine.is_idle:
            yield [(rows[token.request], token.id) for token in engine.step()]
    finally:
        if was_training:
            model.train()
        if engine:
            for number in rows:
                engine.cancel(number)


def _build_engine(model: CausalLM, prompts: Sequence[Sequence[int]], max_rows: int) -> Engine:
    engine = Engine(model, max_rows=max_rows)
    shared = min((count_shared(prompts[0], prompt) for prompt in prompts[1:]), default=0)
    if shared >= SHARED_TOKENS and engine.runner.count_reusable(prompts[0], shared):
        engine.remember(prompts[0][:shared])
    return engine


def complete(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    max_rows: int = MAX_ROWS,
) -> list[list[int]]:
    """The whole answers, stop tokens included."""
    answers: list[list[int]] = [[] for _ in prompts]
    for pairs in decode(model, prompts, sampling, stop_ids=stop_ids, max_rows=max_rows):
        for row, token in pairs:
            answers[row].append(token)
    return answers
