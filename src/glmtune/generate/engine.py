"""The decoder: token ids in, token ids out, any number of requests at once.

Used by chat, evaluation and the samples of a training run; `model.generate` is its oracle in the tests. Each
step answers every row that is held with one token, whatever its length; rows that have ended leave and waiting
ones join between two steps. An answer does not depend on what else is being answered.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor

from glmtune.errors import DataError
from glmtune.generate.rows import Rows
from glmtune.generate.runner import Prompt, build_runner
from glmtune.generate.sampling import Draw, Sampling, draw_tokens

MAX_ROWS = 64
"""Rows that are answered at once unless more are asked for."""
MAX_PREFILL_TOKENS = 4096
"""Prompt tokens of one packed pass; a longer prompt has a pass of its own."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how it is answered."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    """Each ends the answer; it is the answer's last token."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    request: int
    """What `submit` has returned."""
    id: int
    is_last: bool


@dataclass(slots=True)
class _Answer:
    """A request that waits or is being answered."""

    number: int
    request: Request
    stop_ids: frozenset[int]
    draw: Draw | None = None
    ids: list[int] = field(default_factory=list)

    def is_ended_by(self, token: int) -> bool:
        return token in self.stop_ids or len(self.ids) == self.request.sampling.max_new_tokens


class Engine:
    """Answers requests together. The model must be in evaluation mode and stay as it is meanwhile."""

    def __init__(
        self, model: Any, *, max_rows: int = MAX_ROWS, max_prefill_tokens: int = MAX_PREFILL_TOKENS
    ) -> None:
        """`max_rows`: how many are answered at once; further requests wait. Raises `ConfigError`."""
        self.runner = build_runner(model)
        self.rows = Rows()
        self.max_rows = max_rows
        self.max_prefill_tokens = max_prefill_tokens
        self._numbers = count()
        self._waiting: deque[_Answer] = deque()
        self._held: list[_Answer] = []  # as in `rows`
        self._positions: Tensor | None = None  # of the next token in each row, (B, ..., 1)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to answer."""
        return not self._held and not self._waiting

    def submit(self, request: Request) -> int:
        """Put a request in line; its number. Raises `DataError` for an empty prompt."""
        if not len(request.prompt):
            raise DataError("prompt: empty, so nothing follows it", hint="give at least one id")
        answer = _Answer(next(self._numbers), request, frozenset(request.stop_ids))
        self._waiting.append(answer)
        return answer.number

    def cancel(self, number: int) -> None:
        """Give a request up, waiting or half answered; its memory is free at once. Unknown numbers are over."""
        self._waiting = deque(answer for answer in self._waiting if answer.number != number)
        for row, answer in enumerate(self._held):
            if answer.number == number:
                self._leave(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One token for each row that is held, and the first of each that joins."""
        tokens = self._advance() if self._held else []
        while self._waiting and len(self._held) < self.max_rows:
            tokens += self._join(self._next_prompts())
        for row in reversed(range(len(self._held))):
            answer = self._held[row]
            if answer.is_ended_by(answer.ids[-1]):
                self._leave(row)
        return tokens

    def _advance(self) -> list[Token]:
        last = torch.tensor([[answer.ids[-1]] for answer in self._held], device=self.runner.device)
        logits = self.runner.step(self.rows, last, self._positions)
        self._positions = self.runner.advance_positions(self._positions)
        return self._draw(logits, self._held)

    def _next_prompts(self) -> list[_Answer]:
        """Waiting requests that fit into one packed pass and the rows that are free; at least one."""
        taken: list[_Answer] = []
        left = self.max_prefill_tokens
        while self._waiting and len(self._held) + len(taken) < self.max_rows:
            left -= len(self._waiting[0].request.prompt)
            if taken and left < 0:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _join(self, joining: Sequence[_Answer]) -> list[Token]:
        first = len(self._held)
        self.rows.add(len(joining))
        for row in range(first, first + len(joining)):
            self.runner.write_front(self.rows, row)
        prompts = [Prompt(first + i, answer.request.prompt, 0) for i, answer in enumerate(joining)]
        logits, following = self.runner.prefill(self.rows, prompts)
        self._positions = following if self._positions is None else torch.cat((self._positions, following))
        self._held += joining
        for answer in joining:
            answer.draw = Draw(
                answer.request.sampling,
                answer.request.prompt,
                vocab_size=logits.shape[-1],
                device=logits.device,
            )
        return self._draw(logits, joining)

    def _draw(self, logits: Tensor, answers: Sequence[_Answer]) -> list[Token]:
        drawn = draw_tokens(logits, [answer.draw for answer in answers])
        for answer, token in zip(answers, drawn, strict=True):
            answer.ids.append(token)
        return [
            Token(answer.number, token, answer.is_ended_by(token))
            for answer, token in zip(answers, drawn, strict=True)
        ]

    def _leave(self, row: int) -> None:
        """The last row takes the place, as in `Rows.remove`."""
        last = self._held.pop()
        if row < len(self._held):
            self._held[row] = last
            self._positions[row] = self._positions[-1]
        self._positions = self._positions[:-1] if self._held else None
        self.rows.remove(row)


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    max_rows: int = MAX_ROWS,
) -> Iterator[list[tuple[int, int]]]:
    """Yield, step by step, the new (row, token id) pairs; the stop token that ends a row is among them.

    At most `max_rows` are answered at once, and the next prompt joins as soon as one of them has ended.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        engine = Engine(model, max_rows=max_rows)
        rows = {engine.submit(Request(prompt, sampling, stop_ids)): row for row, prompt in enumerate(prompts)}
        while not engine.is_idle:
            yield [(rows[token.request], token.id) for token in engine.step()]
    finally:
        if was_training:
            model.train()


def complete(
    model: Any,
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
