"""Several engines over one model, each for requests up to a length: admission by memory, not by rows.

The KV cache of an engine is a rectangle, so one long row makes every row beside it as dear. Here 64 short
rows beside one of 8,192 tokens hold 64 short rows and one long one. The price: a step runs the model once
for each lane with something to answer.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

from glmtune.errors import ConfigError
from glmtune.generate.adapter_set import AdapterSet
from glmtune.generate.engine import Engine
from glmtune.generate.queue import MAX_PREFILL_TOKENS, MAX_ROWS, default_max_held_tokens
from glmtune.generate.requests import Request, Token

LANES = (1024, 8192)
"""Longest requests, prefix, prompt and answer together, of all lanes but the last, in tokens."""

CPU_PREFILL_TOKENS = 256
"""Prompt tokens of one step on a CPU, where more of them gain nothing, and the others' tokens wait meanwhile:
1,024 tokens of the 170 M in W8A8 take 2.05 s of a core by 256, 2.12 at once, 2.36 by 64 (AMD EPYC, AVX2).
"""


class Lanes:
    """Answers requests as an `Engine` does; a request takes the first lane that is long enough for it.

    No request overtakes another of its lane, and short ones do not wait behind long ones.
    """

    def __init__(
        self,
        model: Any,  # Any: a model, or `Adapters`, as of `Engine`
        *,
        lengths: Sequence[int] = LANES,
        max_rows: int = MAX_ROWS,
        max_held_tokens: int | None = None,
        reused_tokens: int = 0,
    ) -> None:
        """`max_rows`: of each lane; `max_held_tokens`: of all lanes together. The rest is as of `Engine`.

        Raises `ConfigError` as `Engine`.
        """
        left = default_max_held_tokens(max_rows) if max_held_tokens is None else max_held_tokens
        if left <= len(lengths):
            raise ConfigError(
                f"max_held_tokens: {left} for {len(lengths) + 1} lanes",
                hint=f"max_held_tokens={4096 * max_rows}",
            )
        base = model.model if isinstance(model, AdapterSet) else model
        on_cpu = base.get_input_embeddings().weight.device.type == "cpu"
        # one counter for all: a number names its request whatever lane it is in
        numbers = count()
        self._engines: list[Engine] = []
        self._lengths = lengths
        self._drawn: list[Token] = []
        for place, length in enumerate((*lengths, None)):
            share = left // (len(lengths) + 1 - place)
            # short rows cannot fill more than this: what they leave over is for longer ones
            share = share if length is None else min(share, max_rows * length)
            left -= share
            engine = Engine(
                model,
                max_rows=max_rows,
                max_prefill_tokens=CPU_PREFILL_TOKENS if on_cpu else MAX_PREFILL_TOKENS,
                max_held_tokens=share,
                reused_tokens=reused_tokens,
                numbers=numbers,
            )
            self._engines.append(engine)
        first = self._engines[0]
        if not first.goes_on:
            first.reuse.num_tokens = 0  # no turn could reuse the one before
        for engine in self._engines:  # a conversation grows from lane to lane, and its beginning with it
            engine.reuse = first.reuse

    @property
    def is_idle(self) -> bool:
        """True if nothing is left to answer."""
        return not self._drawn and all(engine.is_idle for engine in self._engines)

    @property
    def context(self) -> int | None:
        """Context length of the model in tokens; None if its config names none."""
        return self._engines[0].context

    @property
    def num_rows(self) -> int:
        """Number of requests that are being answered; the others wait."""
        return sum(engine.num_rows for engine in self._engines)

    @property
    def num_held_tokens(self) -> int:
        """Tokens that the KV caches have room for."""
        return sum(engine.num_held_tokens for engine in self._engines)

    def submit(self, request: Request) -> int:
        """Queue a request in its lane; return its number. Errors as of `Engine.submit`."""
        num_tokens = self._engines[0].count_tokens(self._engines[0].check(request))
        lane = sum(num_tokens > length for length in self._lengths)
        return self._engines[lane].submit(request)

    def cancel(self, number: int) -> None:
        """Drop a request, waiting or half answered, and free its memory at once."""
        self._drawn = [token for token in self._drawn if token.request != number]
        # its lane is not looked up: engines pass over numbers they do not have
        for engine in self._engines:
            engine.cancel(number)

    def step(self) -> list[Token]:
        """Decode one token for each row of every lane; return the new tokens. Errors as of `Engine.step`."""
        for engine in self._engines:
            if not engine.is_idle:
                self._drawn += engine.step()  # kept: a lane behind it may raise
        tokens, self._drawn = self._drawn, []
        return tokens
