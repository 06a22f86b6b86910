"""Sampling: settings, and the draw of the next token from the logits."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import isfinite
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from glmtune.errors import ConfigError
from glmtune.near import nearest
from glmtune.recipe.base import MAX_COUNT, MAX_RATE
from glmtune.templates.messages import ChatDefaults

_EXAMPLES = {
    "max_new_tokens": 512, "do_sample": True, "temperature": 0.8, "top_p": 0.8, "top_k": 50,
    "repetition_penalty": 1.1, "seed": 42,
}  # fmt: skip
NOT_FINITE = "the model's scores of the next token are not finite"
LOOK_FOR_NAN = "look for NaN in the weights; fp16 overflows where bf16 and fp32 do not"
NOTHING = -1
"""Stands in place of a token id where the logits are not finite."""
LEAST_TEMPERATURE = 1e-6
"""Lowest temperature above 0: logits divided by less overflow fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling settings of one answer; a `Chat` takes the family's own for those that it is not given."""

    max_new_tokens: int = 512
    """Longest answer in tokens."""
    do_sample: bool = True
    """False: always the most likely token."""
    temperature: float = 0.8
    """Divides the logits; below 1 sharpens the distribution. 0: no sampling; else at least 1e-6."""
    top_p: float = 0.8
    """Draw only from the most likely tokens that together have this probability."""
    top_k: int = 0
    """Draw only from the `top_k` most likely tokens; 0: no limit."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and the answer so far less likely (Keskar et al. 2019)."""
    seed: int | None = None
    """Makes the answer repeatable, whatever else is answered: each answer has its own random generator."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value outside its range."""
        for name, (kind, is_allowed, allowed) in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or not is_allowed(value):
                # Python refuses to print whole numbers of more than 4,300 digits
                is_huge = isinstance(value, int) and value.bit_length() > 128
                written = f"one of {value.bit_length():,} bits" if is_huge else f"{value!r:.80}"
                raise ConfigError(
                    f"{name}: must be {allowed}, got {written}", hint=f"for example {name}={_EXAMPLES[name]}"
                )
            if kind is Real:  # a Fraction is Real too, but no tensor can be divided by it
                object.__setattr__(self, name, float(value))

    def __str__(self) -> str:
        """Return a line for people: the draw of tokens, and the longest answer."""
        how = f"temperature {self.temperature:g}, top_p {self.top_p:g}, top_k {self.top_k or 'off'}"
        if self.is_greedy:
            how = "always the likeliest token"
        if self.repetition_penalty != 1:
            how += f", repetition_penalty {self.repetition_penalty:g}"
        return f"{how}; at most {self.max_new_tokens:,} tokens an answer"

    @property
    def is_greedy(self) -> bool:
        """True if the next token is always the most likely one."""
        return not self.do_sample or self.temperature == 0


def read_sampling(settings: Mapping[str, Any]) -> Sampling:
    """Return the sampling settings given by name. Raises `ConfigError` for an unknown name or a bad value."""
    known = [field.name for field in fields(Sampling)]
    for name in settings:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}=...?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{name}: unknown setting", hint=hint)
    return Sampling(**settings)


def usual_sampling(
    chat: ChatDefaults,
    generation: Any,  # Any: transformers' GenerationConfig, which has no types
    given: Collection[str],
) -> dict[str, Any]:
    """Return the settings that a chat uses where its caller, who has set those named `given`, has none.

    They are those of the model's generation_config.json (`generation`, transformers' object), else `chat`'s.
    """
    ours = {"temperature": chat.temperature, "top_p": chat.top_p, "top_k": chat.top_k}
    # a caller who says how to draw wants tokens drawn, whatever the file has
    names = [*ours, "repetition_penalty", *(() if ours.keys() & set(given) else ("do_sample",))]
    found = {name: getattr(generation, name) for name in names}  # transformers' object has None for unset
    return {**ours, **{name: value for name, value in found.items() if value is not None}}


_ALLOWED: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    "max_new_tokens": (Integral, lambda n: 1 <= n <= MAX_COUNT, f"a whole number from 1 to {MAX_COUNT:,}"),
    "temperature": (
        Real,
        lambda t: t == 0 or LEAST_TEMPERATURE <= t <= MAX_RATE,
        f"0, or a number from 1e-6 to {MAX_RATE:g}",
    ),
    "top_p": (Real, lambda p: 0 <= p <= 1, "between 0 and 1"),
    "top_k": (Integral, lambda k: 0 <= k <= MAX_COUNT, f"a whole number from 0 to {MAX_COUNT:,}"),
    "repetition_penalty": (Real, lambda r: 0 < r <= MAX_RATE, f"a number above 0, at most {MAX_RATE:g}"),
    "seed": (
        Integral | None,
        lambda s: s is None or -(2**63) <= s < 2**64,
        "a whole number from -2^63 to 2^64 - 1",
    ),
}
"""Type and range of each number, and the words for both in the error message."""


@dataclass(frozen=True, slots=True)
class Likely:
    """The log-probability of a drawn token, and the likeliest tokens in its place with theirs.

    They are the model's own: before penalty, temperature, top_k and top_p.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Limit(Protocol):
    """The tokens that an answer is limited to, as a `Grammar` names them."""

    @property
    def problem(self) -> str:
        """The reason why no token may come next; empty while one may."""

    def mask(self, size: int) -> Tensor:
        """Return the tokens that may come next, True = may, (V,); `size`: V."""

    def take(self, token: int) -> None:
        """Go on behind a token that was drawn."""


class Draw:
    """The sampling state of one answer: settings, random generator, and tokens seen so far."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        *,
        device: torch.device,
        limit: Limit | None = None,
    ) -> None:
        """`prompt`: ids that the repetition penalty counts as seen; `limit`: moved on by the caller."""
        self.sampling = sampling
        self.limit = limit
        self.prompt = prompt
        self.generator: torch.Generator | None = None
        if sampling.seed is not None and not sampling.is_greedy:
            self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self._seen: Tensor | None = None

    @property
    def is_penalised(self) -> bool:
        """True if tokens seen before become less likely."""
        return self.sampling.repetition_penalty != 1.0

    def seen_of(self, logits: Tensor) -> Tensor:
        """Return a mask (V,) of the vocabulary, True = seen, on the device of `logits` (..., V)."""
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._seen[torch.tensor(self.prompt, device=logits.device)] = True
        return self._seen


def draw_tokens(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw the next token of each row, or `NOTHING`, from logits (B, V). Rows do not influence each other.

    If it raises, no random number is used up: the step can be repeated.
    """
    limits = [(row, draw.limit) for row, draw in enumerate(draws) if draw.limit]
    logits = logits.clone() if limits else logits
    for row, limit in limits:
        logits[row].masked_fill_(~limit.mask(logits.shape[1]).to(logits.device), -torch.inf)
    if all(draw.sampling.is_greedy and not draw.is_penalised for draw in draws):
        return _draw_likeliest(logits)
    # rows with equal settings are scored together: one softmax for all of them
    rows_of: dict[Sampling, list[int]] = {}
    for i, draw in enumerate(draws):
        rows_of.setdefault(draw.sampling, []).append(i)
    drawn = [NOTHING] * len(draws)
    with _rewinding(draws):
        for sampling, rows in rows_of.items():
            chosen = logits if len(rows) == len(draws) else logits[rows]
            tokens = _draw(chosen, sampling, [draws[i] for i in rows])
            for i, token in zip(rows, tokens, strict=True):
                drawn[i] = token
    for draw, token in zip(draws, drawn, strict=True):
        if draw.is_penalised:
            draw.seen_of(logits)[token] = True
    return drawn


@contextmanager
def _rewinding(draws: Sequence[Draw]) -> Iterator[None]:
    """Inside, an exception resets the random generator of each answer to its state before."""
    states = [(draw.generator, draw.generator.get_state()) for draw in draws if draw.generator]
    try:
        yield
    except BaseException:
        for generator, state in states:
            generator.set_state(state)
        raise


def _draw(logits: Tensor, sampling: Sampling, draws: Sequence[Draw]) -> list[int]:
    seen = torch.stack([draw.seen_of(logits) for draw in draws]) if draws[0].is_penalised else None
    scores = score_tokens(logits, sampling, seen)
    if sampling.is_greedy:
        return _draw_likeliest(scores)
    chances = scores.softmax(dim=-1)
    firsts = chances[:, 0].tolist()  # NaN or +inf in one score makes its whole softmax row NaN
    drawn = [
        torch.multinomial(row if isfinite(first) else torch.ones_like(row), 1, generator=draw.generator)
        for row, first, draw in zip(chances, firsts, draws, strict=True)
    ]
    return _name_nothing(torch.cat(drawn), firsts)


def _draw_likeliest(scores: Tensor) -> list[int]:
    tokens = most_likely(scores)  # argmax takes NaN for the largest number, so a spoiled row shows it here
    return _name_nothing(tokens, scores.gather(1, tokens[:, None])[:, 0].tolist())


def _name_nothing(tokens: Tensor, numbers: Sequence[float]) -> list[int]:
    """Return the tokens (B,), with `NOTHING` where the row's number is not finite."""
    return [
        token if isfinite(number) else NOTHING for token, number in zip(tokens.tolist(), numbers, strict=True)
    ]


def most_likely(scores: Tensor) -> Tensor:
    """Return the index of the largest score of each row, (B, V) to (B,); the first of equal ones."""
    if scores.device.type != "cpu":
        return scores.argmax(dim=-1)
    return torch.from_numpy(scores.float().numpy().argmax(axis=-1))  # torch's argmax takes 13 times as long


def find_likely(logits: Tensor, token: int, count: int) -> Likely:
    """Return the log-probability of a token under logits (V,), and the `count` likeliest tokens."""
    scores = logits.float().log_softmax(dim=-1)
    values, ids = scores.topk(min(count, len(scores)))
    return Likely(float(scores[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def score_tokens(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Return logits (B, V) in fp32 after penalty, temperature, top_k and top_p, in transformers' order.

    `seen`: (B, V), True = seen. A token that cannot be drawn gets -inf.
    """
    scores = logits.float()
    if seen is not None:
        penalty = sampling.repetition_penalty  # a negative score is multiplied: dividing would raise it
        scores = scores.where(~seen, torch.where(scores < 0, scores * penalty, scores / penalty))
    if sampling.is_greedy:
        return scores
    scores = scores / sampling.temperature
    if sampling.top_k:
        limit = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < limit, -torch.inf)
    if sampling.top_p >= 1.0:
        return scores
    # the smallest set of most likely tokens whose probability reaches top_p (Holtzman et al. 2019)
    ordered, order = scores.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    is_out = before >= sampling.top_p
    is_out[:, 0] = False  # the most likely token always stays
    ordered = ordered.masked_fill(is_out, -torch.inf)
    return ordered.gather(1, order.argsort(dim=-1))
