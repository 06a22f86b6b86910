"""Batch generation: answer several prompts with a new engine, or with one that keeps earlier turns."""

from collections.abc import Collection, Generator, Sequence

from glmtune.errors import ConfigError
from glmtune.generate.engine import Engine
from glmtune.generate.queue import MAX_ROWS
from glmtune.generate.requests import Request
from glmtune.generate.reuse import count_shared
from glmtune.generate.sampling import Sampling
from glmtune.models.protocol import CausalLM

SHARED_TOKENS = 32
"""Shortest common beginning of several prompts that is prefilled once, in a pass of its own."""


def decode(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    max_rows: int = MAX_ROWS,
    engine: Engine | None = None,
) -> Generator[list[tuple[int, int]], None, None]:
    """Yield, after each step, the new (prompt index, token id) pairs, stop tokens included.

    At most `max_rows` prompts are answered at once; the next one joins as soon as one has ended. A beginning
    that all prompts share is prefilled once. `engine`: an engine of this model whose kept keys and values are
    to be reused; raises `ConfigError` if it is not idle.
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
        if engine is None:
            engine = Engine(model, max_rows=max_rows)
            shared = min((count_shared(prompts[0], prompt) for prompt in prompts[1:]), default=0)
            if shared >= SHARED_TOKENS and engine.runner.count_reusable(prompts[0], shared):
                engine.remember(prompts[0][:shared])
        engine.tell_length([len(prompt) for prompt in prompts])
        for row, prompt in enumerate(prompts):
            rows[engine.submit(Request(prompt, sampling, stop_ids))] = row
        while not engine.is_idle:
            yield [(rows[token.request], token.id) for token in engine.step()]
    finally:  # also when the caller closes the generator half way
        if was_training:
            model.train()
        if engine:
            for number in rows:
                engine.cancel(number)


def complete(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    max_rows: int = MAX_ROWS,
    engine: Engine | None = None,
) -> list[list[int]]:
    """Answer all prompts; return the ids of each answer, stop tokens included. Arguments as of `decode`."""
    answers: list[list[int]] = [[] for _ in prompts]
    for pairs in decode(model, prompts, sampling, stop_ids=stop_ids, max_rows=max_rows, engine=engine):
        for row, token in pairs:
            answers[row].append(token)
    return answers
