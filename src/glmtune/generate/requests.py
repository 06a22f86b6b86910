"""What the engine is asked, checked before it takes part, and what it gives back."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import index

from glmtune.errors import ConfigError, DataError
from glmtune.generate.sampling import Draw, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how it is answered."""

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Collection[int] = ()
    """Each ends the answer; it is the answer's last token."""
    adapter: str | None = None
    """Its name among the engine's `AdapterBatch`; None: the base alone, or an engine's model as it is."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    request: int
    """What `submit` has returned."""
    id: int
    is_last: bool


@dataclass(slots=True)
class Answer:
    """A request that waits or is being answered."""

    number: int
    request: Request
    draw: Draw
    num_tokens: int
    """Columns that its row may come to need: prefix, prompt and the longest answer."""
    ids: list[int] = field(default_factory=list)
    mark: object = None
    """The model's when the prompt was read, as `Reuse.keep` asks for."""

    @property
    def is_ended(self) -> bool:
        """Whether its last token is drawn."""
        return self.ids[-1] in self.request.stop_ids or len(self.ids) == self.draw.sampling.max_new_tokens


def check_request(request: Request, vocabulary: int, most: int | None = None) -> Request:
    """The request with ids of its own: the lists that were given may change meanwhile.

    Raises `DataError` as `check_prompt`, `ConfigError` for stop ids that are none.
    """
    prompt, stop_ids = check_prompt(request.prompt, vocabulary, most), _check_stop_ids(request.stop_ids)
    return replace(request, prompt=prompt, stop_ids=stop_ids)


def check_prompt(ids: Iterable[int], vocabulary: int, most: int | None = None) -> tuple[int, ...]:
    """A copy of a prompt's ids.

    Raises `DataError` where there are none, more than `most`, or others than 0 to `vocabulary` - 1.
    """
    try:
        checked = tuple(map(index, ids))
    except TypeError as error:
        raise DataError(f"prompt: {error}", hint="give token ids, as a tokenizer makes them") from error
    if not checked:
        raise DataError("prompt: empty, so nothing follows it", hint="give at least one id")
    if len(checked) > (most or len(checked)):
        raise DataError(
            f"prompt: {len(checked):,} tokens, where this model reads {most:,} at most",
            hint="shorten it; the rounds before it are left out by themselves in a chat",
        )
    if min(checked) < 0 or max(checked) >= vocabulary:
        position = next(i for i, token in enumerate(checked) if not 0 <= token < vocabulary)
        raise DataError(
            f"prompt: id {checked[position]} at place {position}, "
            f"but this model's ids are 0 to {vocabulary - 1}",
            hint="encode the text with the tokenizer that belongs to this model",
        )
    return checked


def _check_stop_ids(ids: Collection[int]) -> frozenset[int]:
    try:
        return frozenset(map(index, ids))
    except TypeError as error:
        raise ConfigError(
            f"stop_ids: must be several token ids, got {ids!r:.80}", hint="of one, [id]; of none, []"
        ) from error
