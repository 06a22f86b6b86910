"""The engine's requests, their checks, and the tokens it returns."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import index

from glmtune.errors import ConfigError, DataError
from glmtune.generate.sampling import Draw, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the way it is answered, as `Request(prompt, Sampling(seed=1), tokenizer.stop_ids)`."""

    prompt: Sequence[int]
    """Token ids, as `glmtune.encode_messages` makes them."""
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    """Token ids that end the answer; the one drawn is its last token."""
    adapter: str | None = None
    """Name of an adapter of the engine's `AdapterBatch`; None: the base alone, or the engine's only model."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    request: int
    """Number of the request, as `Engine.submit` returned it."""
    id: int
    is_last: bool


@dataclass(slots=True)
class Answer:
    """A request that waits or is being answered, and the tokens drawn for it so far."""

    number: int
    request: Request
    draw: Draw
    num_tokens: int
    """Columns of the KV cache that its row may come to need: prefix, prompt and the longest answer."""
    ids: list[int] = field(default_factory=list)
    mark: object = None
    """`mark_model` of the model when the prompt was read, for `Reuse.keep`."""

    @property
    def is_ended(self) -> bool:
        """True if the last token is a stop id, or the answer has `max_new_tokens`."""
        return self.ids[-1] in self.request.stop_ids or len(self.ids) == self.draw.sampling.max_new_tokens


def check_request(request: Request, vocab_size: int, max_prompt: int | None = None) -> Request:
    """Return the request with copies of its ids, as the caller may change its lists meanwhile.

    Raises `DataError` as `check_prompt`, `ConfigError` for stop ids that are not integers.
    """
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
