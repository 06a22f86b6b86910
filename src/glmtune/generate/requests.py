"""The engine's requests, their checks, and the tokens it returns."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import index

from glmtune.errors import ConfigError, DataError
from glmtune.generate.sampling import Draw, Likely, Limit, Sampling
from glmtune.values import shown


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the way it is answered, as `Request(ids, Sampling(temperature=0), tokenizer.stop_ids)`."""

    prompt: Sequence[int]
    """Token ids, as `glmtune.encode_messages` makes them."""
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    """Token ids that end the answer; the one drawn is its last token."""
    adapter: str | None = None
    """Name of an adapter of the engine's `Adapters`; None: the base alone, or the engine's only model."""
    num_likeliest: int | None = None
    """Likeliest tokens to tell beside each drawn one, with log-probabilities; None: no probabilities."""
    limit: Limit | None = None
    """The tokens that the answer is limited to, such as a `Grammar` of its own; None: all."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer, as `Engine.step` returns it."""

    request: int
    """Number of the request, as `Engine.submit` returned it."""
    id: int
    is_last: bool
    likely: Likely | None = None
    """Log-probabilities, if its request asked for them."""
    num_cached: int = 0
    """Tokens of its prompt whose keys and values were kept from before."""


@dataclass(slots=True)
class Answer:
    """A request that waits or is being answered, and the tokens drawn for it so far."""

    number: int
    request: Request
    draw: Draw
    num_tokens: int
    """Columns of the KV cache that its row may come to need: prefix, prompt and the longest answer."""
    ids: list[int] = field(default_factory=list)
    num_cached: int = 0
    """As of `Token`."""
    mark: object = None
    """`mark_model` of the model when the prompt was read, for `Reuse.keep`."""

    @property
    def is_ended(self) -> bool:
        """True if the last token is a stop id, or the answer has `max_new_tokens`."""
        return self.ids[-1] in self.request.stop_ids or len(self.ids) == self.draw.sampling.max_new_tokens


def require_request(request: object) -> None:
    """Raise `ConfigError` for anything but a `Request` with a `Sampling`."""
    if not isinstance(request, Request):
        raise ConfigError(
            f"request: must be a Request, got {shown(request)}",
            hint="engine.submit(Request(ids, Sampling(), tokenizer.stop_ids)); encode_messages makes the ids",
        )
    if not isinstance(request.sampling, Sampling):
        raise ConfigError(
            f"sampling: must be a Sampling, got {shown(request.sampling)}",
            hint="Request(ids, Sampling(max_new_tokens=8)), or leave it out",
        )


def check_request(request: Request, vocab_size: int, max_prompt: int | None = None) -> Request:
    """Return the request with copies of its ids, as the caller may change its lists meanwhile.

    Raises `DataError` as `check_prompt`, `ConfigError` for stop ids that are not integers, and for another
    `num_likeliest` than a count.
    """
    count = request.num_likeliest
    if count is not None and (not isinstance(count, int) or count < 0):
        raise ConfigError(
            f"num_likeliest: must be a whole number from 0 on, got {count!r:.80}",
            hint="num_likeliest=5, or leave it out",
        )
    prompt = check_prompt(request.prompt, vocab_size, max_prompt)
    try:
        stop_ids = frozenset(map(index, request.stop_ids))
    except TypeError as error:
        raise ConfigError(
            f"stop_ids: must be several token ids, got {request.stop_ids!r:.80}",
            hint="of one, [id]; of none, []",
        ) from error
    return replace(request, prompt=prompt, stop_ids=stop_ids)


def check_prompt(ids: Iterable[int], vocab_size: int, max_prompt: int | None = None) -> tuple[int, ...]:
    """Return a copy of a prompt's ids.

    Raises `DataError` for an empty prompt, more than `max_prompt` ids, or an id outside 0 to `vocab_size` -
    1.
    """
    try:
        checked = tuple(map(index, ids))  # `index` takes numpy's and torch's integers too, but no floats
    except TypeError as error:
        raise DataError(f"prompt: {error}", hint="give token ids, as a tokenizer makes them") from error
    if not checked:
        raise DataError("prompt: empty, so nothing follows it", hint="give at least one id")
    if len(checked) > (max_prompt or len(checked)):
        raise DataError(
            f"prompt: {len(checked):,} tokens, where this model reads {max_prompt:,} at most",
            hint="shorten it; the rounds before it are left out by themselves in a chat",
        )
    if min(checked) < 0 or max(checked) >= vocab_size:
        position = next(i for i, token in enumerate(checked) if not 0 <= token < vocab_size)
        raise DataError(
            f"prompt: id {checked[position]} at place {position}, "
            f"but this model's ids are 0 to {vocab_size - 1}",
            hint="encode the text with the tokenizer that belongs to this model",
        )
    return checked
